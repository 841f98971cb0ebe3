//! Who is at the other end of a unix socket: sock_diag(7) tells the inode number of every socket of a
//! network namespace and that of its peer.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::tracker::sys;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_PEER` of linux/unix_diag.h, and the attribute that comes of it.
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// `UDIAG_SHOW_VFS` and its attribute, and `TCP_LISTEN` of net/tcp_states.h, which is that of unix sockets as well.
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_VFS: u16 = 1;
const LISTEN: u32 = 10;
/// `NLM_F_REQUEST` and `NLM_F_DUMP` of linux/netlink.h.
const REQUEST_DUMP: u16 = 0x301;
/// The lengths of `struct nlmsghdr`, `struct unix_diag_msg` and `struct nlattr`.
const HEADER: usize = 16;
const SOCKET: usize = 16;
const ATTRIBUTE: usize = 4;
/// `NLMSG_ERROR` and `NLMSG_DONE` of linux/netlink.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// How long the kernel is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The unix sockets of this network namespace by their inode numbers, each with that of its peer, if it has
/// one.
///
/// # Errors
/// The errno of asking; `EPROTONOSUPPORT` or `ENOENT` on a kernel that does not tell.
pub(super) fn peers() -> io::Result<HashMap<u32, Option<u32>>> {
    let mut found = HashMap::new();
    ask(&question(u32::MAX, UDIAG_SHOW_PEER), |inode, attributes| {
        found.insert(inode, peer(attributes)?);
        Some(())
    })?;
    Ok(found)
}

/// The inode numbers of the sockets of the calling thread's network namespace that listen at what is the inode
/// `inode` on the file system `dev`, as the kernel numbers devices. Of inodes it tells 32 bits.
///
/// # Errors
/// As [`peers`].
pub(in crate::tracker::service::client) fn listening_at(
    dev: u32,
    inode: u32,
) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    ask(&question(1 << LISTEN, UDIAG_SHOW_VFS), |socket, attributes| {
        let node = attribute(attributes, UNIX_DIAG_VFS)?;
        let node = node.map(|node| Some((number32(node, 0)?, number32(node, 4)?)));
        if node == Some(Some((inode, dev))) {
            found.push(socket);
        }
        Some(())
    })?;
    Ok(found)
}

/// Asks, and hands on every socket of the answer with its attributes; nothing for what is not of their form.
fn ask(question: &[u8], mut each: impl FnMut(u32, &[u8]) -> Option<()>) -> io::Result<()> {
    let socket = sys::socket_diagnosis()?;
    write(&socket, question)?;
    let mut buffer = vec![0; 64 << 10];
    let began = Instant::now();
    loop {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&socket), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100_u8))? == 0 && began.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = match read(&socket, &mut buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) if began.elapsed() <= PATIENCE => continue,
            length => length?,
        };
        if parse(buffer.get(..length).unwrap_or_default(), &mut each)? {
            return Ok(());
        }
    }
}

/// A `struct nlmsghdr` and a `struct unix_diag_req` that ask for every unix socket in one of `states`, and for what
/// `show` says of it.
fn question(states: u32, show: u32) -> Vec<u8> {
    const LENGTH: u32 = 40;
    let mut question = Vec::new();
    question.extend(LENGTH.to_ne_bytes());
    question.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    question.extend(REQUEST_DUMP.to_ne_bytes());
    // Sequence number and port: there is one question only, and the kernel knows who asks.
    question.extend([0; 8]);
    question.extend([u8::try_from(libc::AF_UNIX).unwrap_or(1), 0, 0, 0]);
    question.extend(states.to_ne_bytes());
    // Of no inode number in particular.
    question.extend(0_u32.to_ne_bytes());
    question.extend(show.to_ne_bytes());
    // A cookie, which is not looked at where all are asked for.
    question.extend([0; 8]);
    question
}

/// Hands on the sockets of one answer; whether it was the last one.
///
/// # Errors
/// The errno that the kernel answered with; `InvalidData` for what is no answer.
fn parse(mut answer: &[u8], each: &mut impl FnMut(u32, &[u8]) -> Option<()>) -> io::Result<bool> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not an answer of sock_diag(7)");
    while !answer.is_empty() {
        let length = number32(answer, 0).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length >= HEADER).ok_or_else(invalid)?;
        let kind = number16(answer, 4).ok_or_else(invalid)?;
        let body = answer.get(HEADER..length).ok_or_else(invalid)?;
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let errno = number32(body, 0).ok_or_else(invalid)?.cast_signed();
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            SOCK_DIAG_BY_FAMILY => {
                let inode = number32(body, 4).ok_or_else(invalid)?;
                let attributes = body.get(SOCKET..).ok_or_else(invalid)?;
                each(inode, attributes).ok_or_else(invalid)?;
            }
            _ => {}
        }
        answer = answer.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The peer that the attributes of a socket tell of; nothing if they are not of their form.
#[allow(clippy::option_option, reason = "what is no list of attributes is not one without a peer")]
fn peer(attributes: &[u8]) -> Option<Option<u32>> {
    let Some(value) = attribute(attributes, UNIX_DIAG_PEER)? else { return Some(None) };
    // A peer that nobody holds any more has the number 0.
    Some(Some(number32(value, 0)?).filter(|inode| *inode != 0))
}

/// The attribute of that kind, if there is one; nothing if they are not of their form.
#[allow(clippy::option_option, reason = "what is no list of attributes is not one without it")]
fn attribute(mut attributes: &[u8], kind: u16) -> Option<Option<&[u8]>> {
    let mut found = None;
    while !attributes.is_empty() {
        let length = usize::from(number16(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if number16(attributes, 2)? == kind {
            found = Some(value);
        }
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    Some(found)
}

/// Messages and attributes begin at multiples of four.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn parsed(answer: &[u8], found: &mut HashMap<u32, Option<u32>>) -> io::Result<bool> {
        parse(answer, &mut |inode, attributes: &[u8]| {
            found.insert(inode, peer(attributes)?);
            Some(())
        })
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(aligned(message.len()), 0);
        message
    }

    fn socket(inode: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![1, 1, 1, 0];
        body.extend(inode.to_ne_bytes());
        body.extend([0; 8]);
        for (kind, value) in attributes {
            body.extend(u16::try_from(ATTRIBUTE + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(aligned(body.len()), 0);
        }
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    #[test]
    fn answers() {
        let peer = 78_u32.to_ne_bytes();
        let mut answer = socket(77, &[(0, b"/tmp/x"), (UNIX_DIAG_PEER, &peer)]);
        answer.extend(socket(79, &[]));
        answer.extend(socket(80, &[(UNIX_DIAG_PEER, &[0; 4])]));
        answer.extend(message(99, b"something newer"));
        let mut found = HashMap::new();
        assert!(!parsed(&answer, &mut found).unwrap());
        let expected = HashMap::from([(77, Some(78)), (79, None), (80, None)]);
        assert_eq!(found, expected);
        answer.extend(message(DONE, &[0; 4]));
        assert!(parsed(&answer, &mut found).unwrap());
        assert_eq!(found, expected);
        let refused = message(ERROR, &(-libc::ENOENT).to_ne_bytes());
        let error = parsed(&refused, &mut found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn what_is_no_answer() {
        let peer = 78_u32.to_ne_bytes();
        let whole = socket(77, &[(UNIX_DIAG_PEER, &peer)]);
        for length in 1..whole.len() {
            let mut found = HashMap::new();
            assert!(parsed(&whole[..length], &mut found).is_err(), "{length}");
            assert!(found.is_empty());
        }
        let mut short = whole.clone();
        short[0] = 15;
        assert!(parsed(&short, &mut HashMap::new()).is_err());
        let mut attribute = whole;
        attribute[HEADER + SOCKET] = 3;
        assert!(parsed(&attribute, &mut HashMap::new()).is_err());
    }

    #[test]
    fn a_pair_of_this_process() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |socket: &UnixStream| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            let link = link.to_str().unwrap().to_owned();
            link.trim_start_matches("socket:[").trim_end_matches(']').parse::<u32>().unwrap()
        };
        match peers() {
            Ok(found) => assert_eq!(found[&inode(&one)], Some(inode(&other))),
            Err(error) => {
                let missing = [libc::EPROTONOSUPPORT, libc::ENOENT, libc::EPERM];
                assert!(missing.contains(&error.raw_os_error().unwrap_or(0)), "{error}");
            }
        }
    }
}
