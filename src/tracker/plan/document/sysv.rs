//! What a plan says of System V objects.

use super::{At, PlanError};
use crate::tracker::inventory::sysv::{Entry, Of, Queue, Segment, Set};
use crate::tracker::sys::Nanoseconds;
use crate::tracker::sys::ipc::Family;

/// What is known of an object of this family beside its id.
pub(super) fn entry(at: &At<'_>, family: Family) -> Result<Entry, PlanError> {
    let key_at = at.get("key")?;
    let digits = key_at.text()?.strip_prefix("0x").filter(|digits| digits.len() == 8);
    let key = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let key = key.ok_or_else(|| key_at.wrong("expected 0x and eight hexadecimal digits"))?;
    let id = |name| at.optional(name).map(|id| id.small()).transpose();
    let pid = |name: &str| -> Result<Option<i32>, PlanError> {
        let Some(pid) = at.optional(name) else { return Ok(None) };
        i32::try_from(pid.number()?).map(Some).map_err(|_| pid.wrong("is too large"))
    };
    let number = |name| at.optional(name).map(|count| count.number()).transpose();
    // Never is not the same as not known, and both are null: never is told by the field.
    let time = |name: &str| -> Result<Option<Nanoseconds>, PlanError> {
        match at.value.get(name) {
            None => Ok(None),
            Some(value) if value.is_null() => Ok(Some(0)),
            Some(_) => at.get(name)?.time().map(Some),
        }
    };
    let of = match family {
        Family::Shm => Of::Shm(Segment {
            creator: pid("creator_pid")?,
            last: pid("last_pid")?,
            attachments: number("attachments")?,
            attached: time("attached_at")?,
            detached: time("detached_at")?,
            swapped: number("swapped")?,
            locked: at.get("locked")?.flag()?,
            dest: false,
        }),
        Family::Sem => Of::Sem(Set {
            count: number("semaphores")?,
            operated: time("operated_at")?,
            semaphores: None,
        }),
        Family::Msg => Of::Msg(Queue {
            messages: number("messages")?,
            sender: pid("sender_pid")?,
            receiver: pid("receiver_pid")?,
            sent: time("sent_at")?,
            received: time("received_at")?,
        }),
    };
    Ok(Entry { key, creator_uid: id("creator_uid")?, creator_gid: id("creator_gid")?, of })
}
