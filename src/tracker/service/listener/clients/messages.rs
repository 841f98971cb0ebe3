//! What clients say, line by line.

use super::*;

impl Service<'_> {
    /// One line of a connection.
    pub(super) fn take(&mut self, number: u64, line: Result<&[u8], LineError<'_>>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.line += 1;
        self.messages_read += 1;
        let line = match line {
            Ok(line) => line,
            Err(error) => return self.refuse(number, &[], &error),
        };
        if let Some(pid) = owner_of(line) {
            return match pid {
                Some(pid) => self.change_owner(number, line, pid),
                None => self.refuse(number, line, &"OWNER needs a pid"),
            };
        }
        let owner = client.owner;
        let message = match parse(line, self.options.dialect) {
            Ok(message) => message,
            Err(error) => return self.refuse(number, line, &error),
        };
        if message.command == Command::Probe {
            return self.reply(number);
        }
        let is_path = matches!(message.rtype, Rtype::File | Rtype::Folder);
        if is_path && message.name.first() != Some(&b'/') {
            // This process's directory is not the client's.
            return self.refuse(number, line, &"a path has to begin with / here");
        }
        let of_owner = self.watched.get(&owner).and_then(|watched| watched.peer.elsewhere);
        if let Some(elsewhere) = client.peer.elsewhere.or(of_owner).filter(|_| is_path) {
            return self.refuse(number, line, &elsewhere);
        }
        let found = match message.command {
            Command::Register => found::in_shm(message.rtype, &message.name),
            _ => None,
        };
        let uid = client.peer.uid;
        if let Some(other) = found.map(|stat| stat.uid).filter(|owner| uid != 0 && *owner != uid) {
            return self.refuse(number, line, &format_args!("it belongs to uid {other}"));
        }
        let then = Then { at: wall_clock(), identity: found.map(|stat| Identity::of(&stat)) };
        match self.owners.apply(owner, &message, || then) {
            Ok((change, given_up)) => {
                self.note(owner, &message, change, then);
                if let Some(given_up) = given_up
                    && let Some(watched) = self.watched.get(&owner)
                {
                    let (id, owner) = (owner, watched.peer.clone());
                    self.remover.add(Job { id, owner, left: vec![given_up], given_up: true });
                }
            }
            Err(error) => self.refuse(number, line, &error),
        }
    }

    /// What follows for the journal from a message of an owner.
    pub(super) fn note(&mut self, owner: Id, message: &Message<'_>, change: Change, then: Then) {
        if !self.ledger.is_kept() {
            return;
        }
        let (rtype, name) = (message.rtype, &*message.name);
        match change {
            Change::Registered(count) if count == 1 || then.identity.is_some() => {
                if let Some(watched) = self.watched.get_mut(&owner)
                    && !std::mem::replace(&mut watched.announced, true)
                {
                    let Peer { pid, started: start_ticks, uid, gid, .. } = watched.peer;
                    let id = owner;
                    self.ledger.announced(journal::Owner { id, pid, start_ticks, uid, gid });
                }
                let Then { at, identity } = then;
                let name = name.to_vec();
                self.ledger.registered(owner, &Inherited { rtype, name, count, identity, at });
            }
            Change::Registered(count) if self.options.dialect.releases(rtype) => {
                self.ledger.counted(owner, rtype, name, count);
            }
            Change::Released(count) if count > 0 => {
                self.ledger.counted(owner, rtype, name, count);
            }
            Change::Forgotten => self.ledger.taken_back(owner, rtype, name),
            // What was given up is written down when it is removed.
            Change::Released(_) | Change::Registered(_) | Change::None => {}
        }
    }

    /// Counts a bad message, and tells what is wrong with it.
    pub(super) fn refuse(&mut self, number: u64, line: &[u8], why: &dyn fmt::Display) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.bad += 1;
        self.bad += 1;
        client.wrong = Some(why.to_string());
        if client.bad > COMPLAINTS {
            return;
        }
        let more = if client.bad == COMPLAINTS { "; what follows is only counted" } else { "" };
        let text = format!(
            "{}: line {}: {}: {why}{more}",
            client.peer,
            client.line,
            shortened(line.strip_suffix(b"\n").unwrap_or(line)),
        );
        self.warn(format_args!("{text}"));
    }

    /// Refuses a message, says why, and ends the connection.
    fn dismiss(&mut self, number: u64, line: &[u8], why: &str) {
        self.refuse(number, line, &why);
        if let Some(client) = self.clients.get_mut(&number) {
            let answer = format!("{}\n", json!({ "error": why }));
            // Who does not read it sees the end.
            client.stream.write_all(answer.as_bytes()).unwrap_or(());
        }
        self.hang_up(number);
    }

    pub(super) fn reply(&mut self, number: u64) {
        // What is answered for outlives the daemon.
        self.write_down();
        let Some(client) = self.clients.get_mut(&number) else { return };
        let mut answer = json!({
            "pid": std::process::id(),
            "messages": client.line - client.bad,
            "bad": client.bad,
            "registered": self.owners.len_of(client.owner),
            "wrong": client.wrong,
        });
        if let Some(fields) = answer.as_object_mut().filter(|_| self.ledger.is_kept()) {
            fields.insert("journaled".into(), (!self.ledger.is_failing()).into());
        }
        // Who does not read answers gets none when the socket is full.
        client.stream.write_all(format!("{answer}\n").as_bytes()).unwrap_or(());
    }

    /// From now on the connection registers for the process `pid`.
    pub(super) fn change_owner(&mut self, number: u64, line: &[u8], pid: i32) {
        let Some(client) = self.clients.get(&number) else { return };
        let (before, first) = (client.owner, client.line == 1);
        let fresh = self.watched.get(&before).is_some_and(|watched| match watched.by_connection {
            true => self.owners.len_of(before) == 0,
            // Who registered with a predecessor may register for others as well.
            false => watched.inherited && first,
        });
        if !fresh {
            return self.refuse(number, line, &"the owner is to be said first, and once");
        }
        // To look at a process costs more than to ask for it, so nobody asks twice.
        let peer = match client.peer.on_behalf_of(pid) {
            Ok(peer) => peer,
            Err(unfit) => {
                return self.dismiss(number, line, &format!("process {pid} cannot own: {unfit}"));
            }
        };
        let known = self.watched.iter().find(|(_, watched)| {
            !watched.by_connection && watched.peer.is(&peer) && watched.peer.uid == peer.uid
        });
        let owner = match known {
            Some((id, _)) => *id,
            None => {
                let of_user =
                    |watched: &&Watched| !watched.by_connection && watched.peer.uid == peer.uid;
                let count = self.watched.values().filter(of_user).count();
                if count >= self.options.limits.clients_of(peer.uid) {
                    let why = format!(
                        "{count} processes of this user are waited for, and no more may be"
                    );
                    return self.dismiss(number, line, &why);
                }
                let id = self.owners.add(peer.uid);
                if let Err(errno) = self.watch(&peer, process_token(id)) {
                    self.owners.end(id);
                    return self.refuse(number, line, &errno);
                }
                let (by_connection, announced, inherited) = (false, false, false);
                let connections = Vec::new();
                let watched = Watched { peer, by_connection, connections, announced, inherited };
                self.watched.insert(id, watched);
                id
            }
        };
        match self.watched.get_mut(&before) {
            Some(watched) if !watched.by_connection => {
                watched.connections.retain(|other| *other != number);
            }
            _ => self.forget(before),
        }
        if let Some(watched) = self.watched.get_mut(&owner) {
            watched.connections.push(number);
        }
        if let Some(client) = self.clients.get_mut(&number) {
            client.owner = owner;
        }
    }
}

/// The pid in a line that names an owner; nothing inside if there is none in it.
fn owner_of(line: &[u8]) -> Option<Option<i32>> {
    if line.first() != Some(&b'{') {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    if value.get("cmd")?.as_str()? != "OWNER" {
        return None;
    }
    let pid = value.get("pid").and_then(serde_json::Value::as_i64);
    Some(pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0))
}
