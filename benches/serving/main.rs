//! What serving is measured with: a load generator, the stream of look-ups, small writes, and the bare server that is
//! the floor of the protocol. `make bench-serving` runs it all; one at a time: `cargo bench --bench serving -- load --help`.

mod answers;
mod calls;
mod entities;
mod exchange;
mod floor;
mod load;
mod record;
mod write;

use std::error::Error;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about = "Measures serving")]
struct Cli {
    /// Cargo says so.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve constant batches, or what one MGET finds, with nothing else in the way
    Floor(floor::FloorArgs),
    /// Set the entries that a floor fetches
    Fill(entities::FillArgs),
    /// Call DoGet with direct tickets: by callers that wait for answers, or at a fixed rate
    Load(load::LoadArgs),
    /// Look up keys through one DoExchange stream
    Exchange(exchange::ExchangeArgs),
    /// Ingest small writes by DoPut, by writers that wait for each to be acknowledged
    Write(write::WriteArgs),
}

fn main() -> ExitCode {
    if is_run_by_cargo_alone() {
        return ExitCode::SUCCESS;
    }
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `cargo test --all-targets` and `cargo bench` run every benchmark, with flags and filters of theirs.
fn is_run_by_cargo_alone() -> bool {
    let first = std::env::args().nth(1).unwrap_or_default();
    let known = ["help", "--help", "-h"];
    !known.contains(&first.as_str()) && Cli::command().find_subcommand(&first).is_none()
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = match command {
        Command::Floor(args) => return runtime.block_on(floor::serve(args)),
        Command::Fill(args) => return runtime.block_on(entities::fill(args)),
        Command::Load(args) => runtime.block_on(load::run(args))?,
        Command::Exchange(args) => runtime.block_on(exchange::run(args))?,
        Command::Write(args) => runtime.block_on(write::run(args))?,
    };
    Ok(writeln!(stdout(), "{result}")?)
}
