//! Command line to settings to server to exit code.

use std::env;
use std::io::{Write, stderr};
use std::os::unix::process::CommandExt;
use std::process::{self, ExitCode};
use std::thread;

use clap::Parser;
use fletching::{Cli, Command, Error, ErrorKind, STACK_BYTES, Settings, serve, shell, write_user};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A setting is wrong.
const BAD_SETTING: u8 = 2;
/// Anything else went wrong.
const FAILED: u8 = 1;

const ALLOCATOR_SETTINGS: &str = "_RJEM_MALLOC_CONF";

/// How the allocator goes about it. There are as many arenas as CPUs, so that what one thread gives back is there for
/// others; large buffers are kept as others are: the system would have to give them again to the next query, page by page,
/// which costs a sixth of a large join. What nobody wants for five minutes goes back to the system, by a thread for that.
fn allocator_settings() -> String {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    format!("narenas:{cpus},oversize_threshold:0,background_thread:true,dirty_decay_ms:300000")
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Serve(_) = command {
        begin_again_with(ALLOCATOR_SETTINGS, allocator_settings());
    }
    match command {
        Command::Serve(args) => match Settings::resolve(*args) {
            Ok(settings) => match block_on(serve(settings)) {
                // What the files hold that the settings name is found when they are read.
                Err(error) if error.kind() == ErrorKind::Invalid => fail(&error, BAD_SETTING),
                served => exit_code(served),
            },
            Err(error) => fail(&error, BAD_SETTING),
        },
        Command::Sql(args) => exit_code(block_on(shell::run(args))),
        Command::User(args) => exit_code(write_user(&args)),
    }
}

/// The allocator reads its settings from the environment, and before anything else runs: where these are not there the
/// process becomes itself once more, with them; what was there holds where both say something. If it cannot, it goes on
/// without.
fn begin_again_with(variable: &str, settings: String) {
    let set = env::var(variable).unwrap_or_default();
    if !set.starts_with(&settings)
        && let Ok(program) = env::current_exe()
    {
        let mut arguments = env::args_os();
        let mut again = process::Command::new(program);
        let settings =
            [settings, set].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",");
        again.arg0(arguments.next().unwrap_or_default()).args(arguments).env(variable, settings);
        let _ = again.exec(); // it returns only if it fails
    }
}

fn block_on(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Error::unavailable(format!("cannot start threads: {error}")))?
        .block_on(work)
}

fn exit_code(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, FAILED),
    }
}

fn fail(error: &Error, code: u8) -> ExitCode {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(stderr(), "error: {error}");
    ExitCode::from(code)
}
