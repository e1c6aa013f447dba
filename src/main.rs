//! Command line to settings to server to exit code.

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use fletching::{Cli, Command, Error, ErrorKind, Settings, serve, shell, write_user};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A setting is wrong.
const BAD_SETTING: u8 = 2;
/// Anything else went wrong.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    match Cli::parse().command {
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

fn block_on(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    tokio::runtime::Builder::new_multi_thread()
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
