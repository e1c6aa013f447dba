//! `fletching user`: writes a line for the users file.

use std::io::{self, IsTerminal, Write};

use uuid::Uuid;

use super::line::{self, Password};
use crate::config::UserArgs;
use crate::error::{Error, Result};

/// Writes the line of `args.name` to standard output: with the hash of a password that is asked for, or read from
/// standard input, or with that of a new token, which goes to standard error.
///
/// # Errors
/// `Invalid` for a name or a password that cannot be; `Unavailable` where nobody can be asked.
pub fn write_user(args: &UserArgs) -> Result<()> {
    line::check_name(&args.name).map_err(Error::invalid)?;
    let line = if args.token {
        let token = new_token();
        let line = line::of_token(&args.name, &token);
        writeln!(io::stderr(), "the token, shown this once: {token}").map_err(unwritten)?;
        line
    } else {
        Password::of(&password()?)?.line(&args.name)
    };
    writeln!(io::stdout(), "{line}").map_err(unwritten)
}

/// 244 random bits, with a mark by which scanners for lost secrets find it.
fn new_token() -> String {
    format!("flt_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

fn password() -> Result<String> {
    let password = if io::stdin().is_terminal() {
        let first = rpassword::prompt_password("password: ").map_err(unread)?;
        if rpassword::prompt_password("the same again: ").map_err(unread)? != first {
            return Err(Error::invalid("these are two passwords; nothing was written"));
        }
        first
    } else {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map_err(unread)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if password.is_empty() {
        return Err(Error::invalid("an empty password lets everybody in; nothing was written"));
    }
    Ok(password)
}

fn unread(error: io::Error) -> Error {
    Error::unavailable(format!("the password cannot be read: {error}"))
}

fn unwritten(error: io::Error) -> Error {
    Error::unavailable(format!("the line cannot be written: {error}"))
}
