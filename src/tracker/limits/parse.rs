//! What `/proc/sys` and `/proc/sysvipc` say, read as bytes. A text that is not understood as a whole
//! is an error: a part of a count would look like a count.

use std::io::{self, BufRead, Read};

use crate::tracker::evidence::mounts::number;

/// A line longer than this is none of the kernel's.
const LONGEST_LINE: usize = 4096;

/// Why a text says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The errno of opening or reading it.
    #[error("{0}")]
    Os(#[from] io::Error),
    /// There are other numbers of them than the kernel writes, or what is there is no number.
    #[error("not {expected} numbers")]
    NotNumbers {
        /// How many there have to be.
        expected: usize,
    },
    /// The first line does not name this column.
    #[error("no column {0}")]
    NoColumn(&'static str),
    /// A line is not of the table's form, or cut off.
    #[error("line {0} is not of the table's form")]
    Line(usize),
}

/// The `expected` numbers of a file of `/proc/sys`. The kernel lets some of its limits be set to
/// less than nothing, which allows nothing: they count as 0.
///
/// # Errors
/// There are other numbers of them, or one is no number of 64 bits.
pub fn numbers(text: &[u8], expected: usize) -> Result<Vec<u64>, Unread> {
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let numbers: Option<Vec<u64>> = words
        .map(|word| match word.strip_prefix(b"-") {
            Some(rest) => number(rest).map(|_| 0),
            None => number(word),
        })
        .collect();
    numbers.filter(|numbers| numbers.len() == expected).ok_or(Unread::NotNumbers { expected })
}

/// What a table of `/proc/sysvipc` adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many objects there are, those marked for destruction included: they count for the kernel
    /// until they are gone.
    pub objects: u64,
    /// The sum of what was asked for.
    pub sum: u64,
}

/// A column to add up, and what each of its numbers counts for.
pub type Summed<'a> = (&'static str, &'a dyn Fn(u64) -> u64);

/// Counts the objects of a table, whose ids are in the column `id`, and adds up another column. It is
/// read line by line: there may be millions.
///
/// # Errors
/// A column is not in the header, or a line is not of its form.
pub fn tally(
    mut table: impl BufRead,
    id: &'static str,
    summed: Option<Summed<'_>>,
) -> Result<Tally, Unread> {
    let mut line = Vec::new();
    if !next_line(&mut table, &mut line)? {
        return Err(Unread::NoColumn(id));
    }
    let header: Vec<Vec<u8>> = fields(&line).map(<[u8]>::to_vec).collect();
    let place = |name: &'static str| {
        let found = header.iter().position(|column| column == name.as_bytes());
        found.ok_or(Unread::NoColumn(name))
    };
    let id = place(id)?;
    let summed =
        summed.map(|(name, counts)| Ok::<_, Unread>((place(name)?, counts))).transpose()?;
    let mut tally = Tally::default();
    let mut at = 1;
    loop {
        at += 1;
        if !next_line(&mut table, &mut line).map_err(|error| located(error, at))? {
            return Ok(tally);
        }
        let row: Vec<&[u8]> = fields(&line).collect();
        let of = |place: usize| row.get(place).copied().and_then(number).ok_or(Unread::Line(at));
        if row.len() != header.len() {
            return Err(Unread::Line(at));
        }
        of(id)?;
        tally.objects += 1;
        if let Some((place, counts)) = summed {
            tally.sum = tally.sum.saturating_add(counts(of(place)?));
        }
    }
}

fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b' ').filter(|field| !field.is_empty())
}

/// The next line, without its end; false when there is none.
fn next_line(table: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, Unread> {
    line.clear();
    table.take(LONGEST_LINE as u64).read_until(b'\n', line)?;
    match line.pop() {
        None => Ok(false),
        Some(b'\n') => Ok(true),
        Some(_) => Err(Unread::Line(1)),
    }
}

fn located(error: Unread, at: usize) -> Unread {
    if matches!(error, Unread::Line(_)) { Unread::Line(at) } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_sysctls() {
        for (text, expected) in [
            (&b"4096\n"[..], &[4096][..]),
            (b"18446744073692774399\n", &[18_446_744_073_692_774_399]),
            (b"32000\t1024000000\t500\t32000\n", &[32_000, 1_024_000_000, 500, 32_000]),
            (b"32000 -1 500 0", &[32_000, 0, 500, 0]),
        ] {
            assert_eq!(numbers(text, expected.len()).unwrap(), expected);
        }
        for (text, expected) in [
            (&b""[..], 1),
            (b"\n", 1),
            (b"4096 1\n", 1),
            (b"32000\t1\t2\n", 4),
            (b"4096x\n", 1),
            (b"-\n", 1),
            (b"--1\n", 1),
            (b"0x10\n", 1),
            (b"\xff\xfe\n", 1),
            (b"18446744073709551616\n", 1),
            (b"1\x002\n", 1),
        ] {
            assert!(numbers(text, expected).is_err(), "{text:?}");
        }
    }

    const SHM: &[u8] = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
-2101363468          0   644                  5000     6     0      0     0     0     0     0          0          0 1795914640                     0                     0
1638602949   4294934530  1666  18446744073709551615     7     0      0 4294967294 100000     0     0          0          0 1795914640                     0                     0
";

    fn pages(text: &[u8]) -> Result<Tally, Unread> {
        tally(text, "shmid", Some(("size", &|size| size.div_ceil(4096))))
    }

    #[test]
    fn tables_add_up() {
        let both = Tally { objects: 2, sum: 2 + (1 << 52) };
        assert_eq!(pages(SHM).unwrap(), both);
        // Nothing overflows.
        let bytes = tally(SHM, "shmid", Some(("size", &|size| size))).unwrap();
        assert_eq!(bytes, Tally { objects: 2, sum: u64::MAX });
        let counted = tally(SHM, "shmid", None).unwrap();
        assert_eq!(counted, Tally { objects: 2, sum: 0 });
        // Columns are where the header says: older kernels have fewer, others more.
        let few = b"size shmid\n 1 5\n4097 6\n";
        assert_eq!(pages(few).unwrap(), Tally { objects: 2, sum: 3 });
        let empty = b"key shmid size\n";
        assert_eq!(pages(empty).unwrap(), Tally::default());
    }

    #[test]
    fn no_part_of_a_table_counts() {
        let long = [b"shmid size\n1 ", &*vec![b'1'; 2 * LONGEST_LINE], b"\n"].concat();
        for (text, says) in [
            (&b""[..], "no column shmid"),
            (b"\n", "no column shmid"),
            (b"key semid perms\n1 2 3\n", "no column shmid"),
            (b"key shmid perms\n1 2 3\n", "no column size"),
            (b"shmid size", "line 1 is not of the table's form"),
            (b"shmid size\n1 2\n3", "line 3 is not of the table's form"),
            (b"shmid size\n1 2\n3 4", "line 3 is not of the table's form"),
            (b"shmid size\n1\n", "line 2 is not of the table's form"),
            (b"shmid size\n1 2 3\n", "line 2 is not of the table's form"),
            (b"shmid size\n\n", "line 2 is not of the table's form"),
            (b"shmid size\n1 -2\n", "line 2 is not of the table's form"),
            (b"shmid size\n1 2\nx 2\n", "line 3 is not of the table's form"),
            (b"shmid size\n1 \xff\n", "line 2 is not of the table's form"),
            (b"shmid size\n1 18446744073709551616\n", "line 2 is not of the table's form"),
            (&long, "line 2 is not of the table's form"),
        ] {
            assert_eq!(pages(text).unwrap_err().to_string(), says, "{text:?}");
        }
        // Every cut but one between lines is noticed.
        let whole: Vec<usize> =
            SHM.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
        for end in 0..=SHM.len() {
            assert_eq!(pages(&SHM[..end]).is_ok(), whole.contains(&end), "cut at {end}");
        }
    }

    #[test]
    fn a_failing_read_is_an_error() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        }
        let table = (&b"shmid size\n1 2\n"[..]).chain(Fails);
        assert!(matches!(
            tally(io::BufReader::new(table), "shmid", None),
            Err(Unread::Os(error)) if error.raw_os_error() == Some(libc::EIO)
        ));
    }
}
