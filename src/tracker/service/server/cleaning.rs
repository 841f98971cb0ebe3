//! What its last user gave up, and what is left at the end.

use super::*;

impl Tracker<'_> {
    /// Removes what its last user gave up. That it cannot be removed changes no exit status.
    pub(super) fn give_up(&mut self, rtype: Rtype, name: &[u8]) {
        let (fate, seen) =
            self.clean_all(&[Item { rtype, name, registered: None }], true).pop().unzip();
        let (fate, seen) = (fate.unwrap_or(Fate::Removed(0)), seen.flatten());
        if self.options.verbose {
            let name = escape(name);
            self.tell(format_args!(
                "[ResourceTracker] decremented refcount of {rtype} {name} (current 0)"
            ));
            self.tell(format_args!("[ResourceTracker] unlink {name}"));
        }
        if let Some(text) = self.stays(rtype, name, &fate, seen.as_ref()) {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let is_new = self.warned.len() >= REMEMBERED || self.warned.insert(hasher.finish());
            if is_new {
                self.warn(format_args!("{text}"));
            }
        }
        if self.record.is_some() {
            let (name, registered_at, state) = (name.to_vec(), None, None);
            let given_up = true;
            let removal = Removal { rtype, name, given_up, fate, seen, state, registered_at };
            self.given_up.push(removal);
        }
    }

    pub(super) fn record_given_up(&mut self) {
        if self.given_up.is_empty() {
            return;
        }
        let removals = std::mem::take(&mut self.given_up);
        for text in self.record(removals, false) {
            warning_of(self.messages, format_args!("{text}"));
        }
    }

    pub(super) fn record(&mut self, removals: Vec<Removal>, end: bool) -> Vec<String> {
        let told = Told { owner: None, end, removals };
        self.record.as_mut().map_or_else(Vec::new, |record| record(told))
    }

    /// Removes, with the care that was asked for.
    pub(super) fn clean_all(
        &self,
        items: &[Item<'_>],
        given_up: bool,
    ) -> Vec<(Fate, Option<Seen>)> {
        // Only other rights than the own could be refused.
        leaks::clean(items, self.options.care, given_up, None).unwrap_or_default()
    }

    /// What is said of something that is not removed.
    pub(super) fn stays(
        &self,
        rtype: Rtype,
        name: &[u8],
        fate: &Fate,
        seen: Option<&Seen>,
    ) -> Option<String> {
        let stays = |why: &str| format!("resource_tracker: {} stays: {why}", ReprStr(name));
        match fate {
            Fate::Removed(_) => None,
            _ if self.is_passed_over(rtype, fate) => None,
            Fate::Kept(why) => Some(stays(&why_kept(why, seen))),
            Fate::Changed => Some(stays("another object has its name now")),
            Fate::Failed(error) => Some(self.failure(rtype, name, error)),
        }
    }

    /// Whether that a resource was not removed is nothing to tell of.
    fn is_passed_over(&self, rtype: Rtype, fate: &Fate) -> bool {
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        self.options.missing_files_ok
            && rtype == Rtype::File
            && matches!(fate, Fate::Failed(RemoveError::Os { error, .. }) if is_gone(error))
    }

    /// The warning about what could not be removed, in the words of the tracker whose type it is.
    pub(super) fn failure(&self, rtype: Rtype, name: &[u8], error: &RemoveError) -> String {
        if self.options.dialect.speaks_loky(rtype) {
            format!("resource_tracker: {}: {}", escape(name), Repr { error, name })
        } else {
            format!("resource_tracker: {}: {error}", ReprStr(name))
        }
    }

    /// Removes what is left, then says what was and what could not be removed.
    pub(super) fn clean(&mut self) {
        let registry = std::mem::take(&mut self.registry);
        let left: Vec<_> = registry
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(rtype, names)| (rtype, names.in_order()))
            .collect();
        let mut removals = Vec::new();
        // What will be said of each: of failures always, of others only if everything is told.
        let mut said: Vec<(Rtype, &[u8], Option<String>)> = Vec::new();
        let items: Vec<Item<'_>> = left
            .iter()
            .flat_map(|(rtype, names)| {
                let then = |name| registry.get(*rtype, name)?.more.identity.as_deref();
                let item =
                    move |name| Item { rtype: *rtype, name, registered: then(name).copied() };
                names.iter().map(move |(name, _)| item(*name))
            })
            .collect();
        // What is recorded of System V objects is there before they go only.
        let recorded = self.record.is_some();
        let state = |item: &Item<'_>| registered::state(item.rtype, item.name).filter(|_| recorded);
        let states: Vec<Option<State>> = items.iter().map(state).collect();
        let mut done = self.clean_all(&items, false).into_iter().zip(states);
        for (rtype, names) in &left {
            self.status.leftovers();
            for ((name, _), ((fate, seen), state)) in names.iter().zip(&mut done) {
                if matches!(fate, Fate::Failed(_)) && !self.is_passed_over(*rtype, &fate) {
                    self.status.failed_removal();
                }
                match self.stays(*rtype, name, &fate, seen.as_ref()) {
                    Some(text) => said.push((*rtype, name, Some(text))),
                    None if self.options.verbose => said.push((*rtype, name, None)),
                    None => {}
                }
                if recorded {
                    let at = registry.get(*rtype, name).map_or(0, |entry| entry.more.at);
                    let registered_at = Some(Nanoseconds::from(at)).filter(|at| *at != 0);
                    let (rtype, name, given_up) = (*rtype, name.to_vec(), false);
                    let removal =
                        Removal { rtype, name, given_up, fate, seen, state, registered_at };
                    removals.push(removal);
                }
            }
        }
        self.ledger.ended(0);
        self.write_down();
        let warnings = self.record(removals, true);
        let mut said = said.into_iter().peekable();
        // The name may be registered under several types, and fail alike under each.
        let mut warned = HashSet::new();
        for (rtype, names) in &left {
            let counts = self.options.dialect.speaks_loky(*rtype);
            if let Some(warning) = LeakWarning::new(*rtype, names, counts) {
                self.warn(format_args!("{warning}"));
            }
            while let Some((_, name, failure)) = said.next_if(|(of, ..)| of == rtype) {
                match failure {
                    Some(failure) => {
                        if warned.insert(failure.clone()) {
                            self.warn(format_args!("{failure}"));
                        }
                    }
                    None => self.tell(format_args!("[ResourceTracker] unlink {}", escape(name))),
                }
            }
        }
        for text in warnings {
            warning_of(self.messages, format_args!("{text}"));
        }
        self.tell(format_args!("resource tracker shut down"));
        self.flush();
    }
}
