//! Removing the name of a socket that was listened on.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Removes `path` if it is the socket of that device and inode. Between the look and the removal there is a
/// moment: nobody but who may write to the directory can use it.
///
/// # Errors
/// The errno of unlink(2); that it is gone, or another one, is none.
pub fn remove(path: &Path, inode: (u64, u64)) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() && (found.dev(), found.ino()) == inode => {
            nix::unistd::unlink(path).map_err(io::Error::from)
        }
        _ => Ok(()),
    }
}
