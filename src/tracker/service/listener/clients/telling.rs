//! What is told: to who asks, on stderr, and to the journal; and what a predecessor's journal tells.

use super::*;

impl Service<'_> {
    /// What it has, for who asks.
    pub(super) fn state(&self) -> TrackerState {
        let mut registered = Vec::new();
        for (id, watched) in &self.watched {
            let Peer { pid, uid, comm, .. } = &watched.peer;
            let by = Registrant { pid: *pid, uid: *uid, comm: comm.clone() };
            for (rtype, name, count, then) in self.owners.of(*id) {
                let (name, at, by) = (name.to_vec(), Some(then.at), Some(by.clone()));
                registered.push(Registered { rtype, name, count, at, by });
            }
        }
        TrackerState {
            pid: std::process::id(),
            dialect: self.options.dialect,
            listens: true,
            messages: self.messages_read,
            bad: self.bad,
            registered,
        }
    }

    /// Answers SIGUSR1.
    pub(super) fn list(&mut self) {
        let ids: Vec<Id> = self.owners.ids().filter(|id| self.owners.len_of(*id) > 0).collect();
        let count: usize = ids.iter().map(|id| self.owners.len_of(*id)).sum();
        let mut text = format!("rtrack:{}: {count} registered\n", std::process::id());
        for id in ids {
            let Some(watched) = self.watched.get(&id) else { continue };
            for (rtype, name, ..) in self.owners.of(id) {
                text.push_str(&format!("{rtype} {} {}\n", ReprStr(name), watched.peer));
            }
        }
        self.say(format_args!("{text}"));
    }

    /// That somebody was turned away, now and then: anybody can cause it.
    pub(super) fn turn_away(&mut self, why: fmt::Arguments<'_>) {
        if self.turned_away.is_none_or(|last| last.elapsed() >= TURNED_AWAY) {
            self.turned_away = Some(Instant::now());
            self.warn(why);
        }
    }

    pub(super) fn warn(&mut self, text: fmt::Arguments<'_>) {
        if self.options.warnings {
            self.say(format_args!("rtrack:{}: UserWarning: {text}\n", std::process::id()));
        }
    }

    pub(super) fn tell(&mut self, text: fmt::Arguments<'_>) {
        if self.options.verbose {
            self.say(format_args!("[DEBUG/MainProcess] {text}\n"));
        }
    }

    pub(super) fn say(&mut self, text: fmt::Arguments<'_>) {
        // Whoever closed stderr does not want to know.
        self.messages.write_fmt(text).unwrap_or(());
    }

    pub(super) fn flush(&mut self) {
        self.messages.flush().unwrap_or(());
    }

    /// Writes down in the journal what has changed.
    pub(super) fn write_down(&mut self) {
        if let Some(warning) = self.ledger.write() {
            self.warn(format_args!("{warning}"));
        }
    }

    /// Takes over what a predecessor left: what is of living processes stays theirs, the rest is removed.
    pub(super) fn inherit(&mut self, inheritance: Inheritance) {
        for warning in inheritance.warnings {
            self.warn(format_args!("{warning}"));
        }
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let mut count = 0_usize;
        let mut dead = Vec::new();
        // All of them first: what a living one has registered as well is not removed for a dead one.
        for Heir { id, process, entries } in inheritance.heirs {
            // What was registered at a pipe is this daemon's own user's.
            let of_pipe = journal::Owner { id: 0, pid: 0, start_ticks: 0, uid: own.0, gid: own.1 };
            let process = process.or((id == 0).then_some(of_pipe));
            let mut peer = match process.as_ref().map(Peer::of_the_past) {
                Some(Ok(peer)) => peer,
                why => {
                    // It stays in the journal: the next daemon may find out.
                    let why = match why {
                        Some(Err(unfit)) => unfit.to_string(),
                        _ => "who it is is not known".to_owned(),
                    };
                    let left = entries.len();
                    if left > 0 {
                        self.warn(format_args!(
                            "{left} names of the journal are left alone, since of their owner: {why}"
                        ));
                    }
                    continue;
                }
            };
            if id == 0 {
                // This daemon's own rights.
                peer.capabilities = None;
            }
            count += entries.len();
            self.owners.restore(id, peer.uid, &entries);
            if peer.has_ended() {
                dead.push(id);
            } else if let Err(errno) = self.watch(&peer, process_token(id)) {
                self.warn(format_args!("{peer}: its end will not be noticed: {errno}"));
            }
            let (by_connection, connections) = (false, Vec::new());
            let (announced, inherited) = (true, true);
            let watched = Watched { peer, by_connection, connections, announced, inherited };
            self.watched.insert(id, watched);
        }
        for id in dead {
            self.end(id);
        }
        if count > 0 {
            self.warn(format_args!("{count} names are taken over from a tracker that was killed"));
        }
        self.write_down();
        self.flush();
    }
}
