//! What the machine is short of: errors that say nothing about a program or its configuration, and pass.

use std::io;

use nix::libc;

/// The errors of a machine that is short of something: descriptors, processes and threads, memory, room on the disk. A disk that is
/// read-only is one of them, since a kernel makes it so when it fails.
const SHORTAGES: [i32; 8] =
    [libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOMEM, libc::ENOBUFS, libc::ENOSPC, libc::EDQUOT, libc::EROFS];

/// Whether an error is the machine's own trouble.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let described = error.get_ref().and_then(|inner| inner.downcast_ref::<Described>());
    let number = described.map(|described| described.number).or(error.raw_os_error());
    number.is_some_and(|number| SHORTAGES.contains(&number))
}

/// An error of the operating system that another process was told.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Described {
    /// The operating system's number of it; 0 if it is another.
    pub(crate) number: i32,
    pub(crate) text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_trouble_is_told_from_a_fault_of_the_program() {
        for number in [libc::EMFILE, libc::EAGAIN, libc::ENOSPC] {
            assert!(is_shortage(&io::Error::from_raw_os_error(number)));
            let told = Described { number, text: "the keeper: no".into() };
            assert!(is_shortage(&io::Error::other(told)));
        }
        assert!(!is_shortage(&io::Error::from_raw_os_error(libc::ENOENT)));
        assert!(!is_shortage(&io::Error::other("another keeper is at work")));
    }
}
