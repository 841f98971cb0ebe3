//! What the journal is told, and what a predecessor's tells.

use super::*;

impl Tracker<'_> {
    /// Takes over what a predecessor left.
    pub(super) fn inherit(&mut self, inheritance: Inheritance) {
        for warning in inheritance.warnings {
            self.warn(format_args!("{warning}"));
        }
        let heirs = inheritance.heirs;
        let known = |rtype: Rtype| self.options.dialect.rtypes().contains(&rtype);
        let mut count = 0_usize;
        let (mut strange, mut bare) = (0_usize, 0_usize);
        for (heir, entry) in
            heirs.iter().flat_map(|heir| heir.entries.iter().map(move |e| (heir, e)))
        {
            if !known(entry.rtype) {
                strange += 1;
                continue;
            }
            // It was left to a process that lives, and the end of a pipe is not its end.
            if entry.is_bare_path() {
                bare += 1;
                continue;
            }
            count += 1;
            let then = Then {
                at: i64::try_from(entry.at).unwrap_or(0),
                identity: entry.identity.map(Box::new),
                written: true,
            };
            for _ in 0..entry.count.max(1) {
                let (command, rtype) = (Command::Register, entry.rtype);
                let message = Message { command, name: entry.name.as_slice().into(), rtype };
                // A registration is never refused.
                self.registry.apply_with(&message, || then.clone()).map(drop).unwrap_or(());
            }
            // From now on it is the pipe's, whosever it was.
            if heir.id != 0 {
                self.ledger.registered(0, entry);
                self.ledger.taken_back(heir.id, entry.rtype, &entry.name);
            }
        }
        if bare > 0 {
            self.warn(format_args!("{bare} names of the journal are files that are not known to be the same: they are left alone"));
        }
        if strange > 0 {
            self.warn(format_args!("{strange} names of the journal are of types that this tracker does not know: they are left alone"));
        }
        if count > 0 {
            self.warn(format_args!("{count} names are taken over from a tracker that was killed"));
        }
        self.write_down();
        self.flush();
    }

    /// Writes down in the journal what has changed since the last time. What was registered and taken back since
    /// then has left no trace, and is not even looked for.
    pub(super) fn write_down(&mut self) {
        for (rtype, name) in std::mem::take(&mut self.fresh) {
            let Some(entry) = self.registry.get_mut(rtype, &name) else { continue };
            if std::mem::replace(&mut entry.more.written, true) {
                continue;
            }
            let identity = found::anywhere(rtype, &name).map(|stat| Identity::of(&stat));
            entry.more.identity = identity.map(Box::new);
            let (count, at) = (entry.count, Nanoseconds::from(entry.more.at));
            self.ledger.registered(0, &Inherited { rtype, name, count, identity, at });
        }
        if let Some(warning) = self.ledger.write() {
            self.warn(format_args!("{warning}"));
        }
    }

    /// What follows for the journal from a message; `written` is whether it knew of the name before.
    pub(super) fn note(&mut self, message: &Message<'_>, change: Change, written: bool) {
        let (rtype, name) = (message.rtype, &*message.name);
        match change {
            Change::Registered(1) => self.fresh.push((rtype, name.to_vec())),
            Change::Registered(count) if written && self.options.dialect.releases(rtype) => {
                self.ledger.counted(0, rtype, name, count);
            }
            Change::Released(count) if written && count > 0 => {
                self.ledger.counted(0, rtype, name, count);
            }
            Change::Released(0) | Change::Forgotten if written => {
                self.ledger.taken_back(0, rtype, name);
            }
            Change::Registered(_) | Change::Released(_) | Change::Forgotten | Change::None => {}
        }
    }
}
