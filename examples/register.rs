//! A program that makes a memory object and has a tracker remove it, however the program ends.
//!
//! ```sh
//! cargo run --example register -- --program target/debug/rtrack
//! ```
//!
//! It prints the object's name and waits for its stdin to end; then it removes the object itself.
//! Kill it with `kill -9` instead, and the tracker does.

#![allow(clippy::print_stdout, reason = "it is a program")]
#![allow(clippy::disallowed_methods, reason = "a program removes what it made itself")]

use std::fs::File;
use std::io::{self, Write};

use clap::Parser;
use nix::fcntl::OFlag;
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::Mode;
use rtrack::tracker::service::client::ResourceTracker;

/// Make a memory object, and have a tracker remove it should this program not come to that
#[derive(Parser)]
struct Arguments {
    /// The rtrack to start [default: the one beside this program, or in PATH]
    #[arg(long)]
    program: Option<std::path::PathBuf>,

    /// The object's name [default: /register.PID]
    #[arg(long)]
    name: Option<String>,

    /// Its size in bytes
    #[arg(long, default_value_t = 4096)]
    size: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut builder = ResourceTracker::builder();
    if let Some(program) = arguments.program {
        builder = builder.program(program);
    }
    let tracker = builder.build()?;
    let name = arguments.name.unwrap_or_else(|| format!("/register.{}", std::process::id()));

    // O_EXCL: what is registered is this program's own. A kill before the next line leaves the object;
    // the other order could cost somebody else's of the same name.
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
    let mut memory = File::from(shm_open(name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    tracker.register(&name, "shared_memory")?;
    memory.write_all(&vec![0x5a; arguments.size])?;

    println!("{name}");
    io::copy(&mut io::stdin(), &mut io::sink())?;

    // The other way round, for the same reason.
    tracker.unregister(&name, "shared_memory")?;
    shm_unlink(name.as_str())?;
    Ok(())
}
