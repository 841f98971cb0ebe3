//! What the kernel counts of System V objects and says of message queues, as evidence.

use serde_json::json;

use super::{Code, CreatorState, Evidence, Who, evidence};

/// What a message queue itself says of those who want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFacts {
    /// How many messages wait in it, if that could be found out.
    pub messages: Option<u64>,
    /// Who asked to be told of the next message; the pid is 0 for a process that is not visible here.
    pub notified: Option<Who>,
}

/// What the kernel counts of a System V object, which has neither lease nor descriptors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of shared memory: how many mappings there are.
    pub attachments: Option<u64>,
    /// Of shared memory: its id is removed already.
    pub dest: bool,
    /// Of semaphores and of a message queue: how many threads wait.
    pub waiting: Option<u64>,
    /// Of a message queue: how many messages nobody has read yet.
    pub unread: Option<u64>,
    /// The processes that used it last.
    pub last: Vec<(i32, CreatorState)>,
}

impl Counts {
    /// What tells of use, or that there is none.
    pub(super) fn of_use(&self) -> Option<Evidence> {
        let attached = |says: String| {
            let fields = [("attachments", json!(self.attachments))];
            Some(evidence(Code::Attached, says, &fields))
        };
        let times =
            |count: u64| if count == 1 { "once".to_owned() } else { format!("{count} times") };
        match self {
            Self { dest: true, attachments, .. } => attached(format!(
                "removed already, and attached {} yet: it goes with the last attachment",
                times(attachments.unwrap_or(0))
            )),
            Self { attachments: Some(0), .. } => Some(evidence(
                Code::LeaseGranted,
                "the kernel counts no attachment, of no process anywhere",
                &[],
            )),
            Self { attachments: Some(count), .. } => {
                attached(format!("the kernel says that it is attached {}", times(*count)))
            }
            Self { waiting: Some(count), .. } if *count > 0 => {
                let processes = if *count == 1 { "process waits" } else { "processes wait" };
                let fields = [("waiting", json!(count))];
                Some(evidence(Code::Attached, format!("{count} {processes} at it"), &fields))
            }
            _ => None,
        }
    }

    /// Messages that nobody has read.
    pub(super) fn unread_messages(&self) -> Option<Evidence> {
        let count = self.unread.filter(|count| *count > 0)?;
        let messages = if count == 1 { "message is" } else { "messages are" };
        let says = format!("{count} {messages} not read yet");
        Some(evidence(Code::Unread, says, &[("messages", json!(count))]))
    }
}
