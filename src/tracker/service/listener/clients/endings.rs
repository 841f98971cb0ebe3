//! What owners leave, and the end of the daemon.

use super::*;

impl Service<'_> {
    /// An owner is gone: what it left is removed.
    pub(super) fn end(&mut self, owner: Id) {
        let left = self.owners.end(owner);
        let Some(watched) = self.watched.remove(&owner) else { return };
        self.epoll.delete(&watched.peer).unwrap_or(());
        self.tell(format_args!("{} is gone", watched.peer));
        if left.is_empty() {
            if watched.announced {
                self.ledger.ended(owner);
            }
            return;
        }
        self.warn_of_leaks(&watched.peer, &left);
        if self.ending {
            self.status.leftovers();
        }
        self.remover.add(Job { id: owner, owner: watched.peer, left, given_up: false });
    }

    /// Forgets an owner that has nothing.
    pub(super) fn forget(&mut self, owner: Id) {
        self.owners.end(owner);
        if let Some(watched) = self.watched.remove(&owner) {
            self.epoll.delete(&watched.peer).unwrap_or(());
        }
    }

    pub(super) fn warn_of_leaks(&mut self, peer: &Peer, left: &[Left]) {
        for rtype in self.options.dialect.rtypes() {
            let of_type = || left.iter().filter(|left| left.rtype == *rtype);
            let count = of_type().count();
            // As of Python's trackers, dummies leak silently.
            if count == 0 || *rtype == Rtype::Dummy {
                continue;
            }
            let names: Vec<String> =
                of_type().take(NAMED).map(|left| ReprStr(&left.name).to_string()).collect();
            let more =
                if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            self.warn(format_args!(
                "{peer} left {count} {rtype} objects to clean up: {}{more}",
                names.join(", ")
            ));
        }
    }

    /// Says what could not be removed, and records everything.
    pub(super) fn report_done(&mut self) {
        for Done { job, fates, .. } in self.remover.done() {
            let Job { id, owner, left, given_up } = job;
            self.owners.settled(owner.uid, left.len());
            if fates.is_err() {
                // It is still registered with whoever reads the journal next.
            } else if given_up {
                for left in &left {
                    self.ledger.taken_back(id, left.rtype, &left.name);
                }
            } else {
                self.ledger.ended(id);
            }
            let fates = match fates {
                Ok(fates) => fates,
                Err(error) => {
                    let count = left.len();
                    self.failed();
                    self.warn(format_args!(
                        "{owner}: {count} objects could not be removed: {error}"
                    ));
                    if !self.options.care.looks() {
                        continue;
                    }
                    let errno = error.raw_os_error().unwrap_or(libc::EPERM);
                    let says = "take the rights of its owner";
                    let failed = || {
                        let says = says.to_owned();
                        (Fate::Failed(RemoveError::Step { errno, says }), None)
                    };
                    let told = left.iter().map(|left| removal(left, given_up, failed()));
                    let removals = told.collect();
                    self.record(&owner, given_up, removals);
                    continue;
                }
            };
            let mut removals = Vec::new();
            let mut said = 0_usize;
            for (left, (fate, seen)) in left.iter().zip(fates) {
                said += usize::from(!matches!(fate, Fate::Removed(_)));
                let name = ReprStr(&left.name);
                let text = match &fate {
                    Fate::Removed(_) => None,
                    Fate::Kept(why) => {
                        Some(format!("{name} stays: {}", why_kept(why, seen.as_ref())))
                    }
                    Fate::Changed => {
                        Some(format!("{name} stays: it is another object than was registered"))
                    }
                    Fate::Failed(error) => {
                        // What is gone already needed no removal; but for Python's words it would be one.
                        self.failed();
                        Some(format!("{name}: {error}"))
                    }
                };
                if let Some(text) = text.filter(|_| said <= TOLD) {
                    self.warn(format_args!("{owner}: {text}"));
                }
                removals.push(removal(left, given_up, (fate, seen)));
            }
            if said > TOLD {
                let more = said - TOLD;
                self.warn(format_args!(
                    "{owner}: {more} more objects stay or could not be removed"
                ));
            }
            self.record(&owner, given_up, removals);
        }
    }

    pub(super) fn record(&mut self, owner: &Peer, given_up: bool, removals: Vec<Removal>) {
        let Some(record) = &mut self.record else { return };
        let owner = Owner { pid: owner.pid, comm: owner.comm.clone(), uid: owner.uid };
        let warnings = record(Told { owner: Some(owner), end: !given_up, removals });
        for text in warnings {
            self.warn(format_args!("{text}"));
        }
    }

    pub(super) fn failed(&mut self) {
        if self.ending {
            self.status.failed_removal();
        }
    }

    /// The end: what was written is still read, then everything goes that is registered.
    pub(super) fn finish(&mut self) {
        self.ending = true;
        let connections: Vec<u64> = self.clients.keys().copied().collect();
        for number in &connections {
            self.read(*number, LAST_WORDS);
        }
        for number in connections {
            self.hang_up(number);
        }
        let owners: Vec<Id> = self.owners.ids().collect();
        for owner in owners {
            self.end(owner);
        }
        let began = Instant::now();
        while !self.remover.is_idle() && began.elapsed() < PATIENCE {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let mut ready =
                [nix::poll::PollFd::new(self.remover.as_fd(), nix::poll::PollFlags::POLLIN)];
            let timeout =
                nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::ZERO);
            // Whatever it answers, what is done is asked for next.
            nix::poll::poll(&mut ready, timeout).map(drop).unwrap_or(());
            self.report_done();
        }
        if !self.remover.is_idle() {
            self.failed();
            self.warn(format_args!("not everything that was left could be removed in time"));
        }
        self.write_down();
        self.tell(format_args!("resource tracker shut down"));
        self.flush();
    }
}

/// What became of something that was left.
fn removal(left: &Left, given_up: bool, (fate, seen): (Fate, Option<Seen>)) -> Removal {
    let Left { rtype, name, then, .. } = left;
    // 0 is the time of what was never noted.
    let registered_at = (then.at > 0).then_some(then.at);
    Removal { rtype: *rtype, name: name.clone(), given_up, fate, seen, state: None, registered_at }
}
