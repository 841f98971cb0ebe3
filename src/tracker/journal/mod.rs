//! What is registered with a daemon, written down before it counts, so that it outlives a `kill -9` of
//! the daemon: the next one reads it back.
//!
//! [`format`](mod@format) has the bytes and [`replay`](mod@replay) what follows from them, both pure;
//! [`file`](mod@file) is the one file that they are in.
//!
//! **What is promised.** Let a record be *kept* once [`Journal::append`] has answered that it is.
//!
//! 1. Nothing is ever answered that was not registered, whatever became of the file: each record has a
//!    CRC-32 that begins with a number which only readers of the file know, so no client can put
//!    what would pass for a record into a name. By chance alone, one damaged record in 2^32 passes.
//! 2. After a `kill -9`, everything kept is answered as it was. At most the batch that was being
//!    written is missing, or all of it after some record. One exception: while [`Journal::make_room`] writes over what is
//!    there, because there is not even room for a second file, what is not written again yet is missing.
//! 3. After damage (a record that is not what was written), reading goes on at the next whole record.
//!    What was lost may have taken something back, so every entry that was registered before the damage
//!    and not again after it is [`doubtful`](Entry::doubtful). An entry that is not was
//!    registered, and nothing that was kept has taken it back. One exception cannot be told from a write that
//!    was interrupted: damage that reaches up to the end of the file and begins with a valid length that is
//!    greater than what is there. No single flipped bit makes one.
//!
//! **What is not.** Nothing is forced to the disk as it is appended. A process that is killed loses nothing
//! that it wrote; a machine that crashes loses what was not written back, and all shared memory,
//! semaphores and queues with it. That they are gone, the boot id tells ([`Entry::earlier`](Entry::earlier)).

pub mod file;
pub mod format;
mod place;
pub mod replay;
#[cfg(test)]
mod tests;

pub use file::{Compacted, Journal, JournalError};
pub use format::{Batch, FormatError, Header, Owner, Record, Registration, TooLong};
pub use replay::{Damage, Entry, Owned, Recovered, replay};
