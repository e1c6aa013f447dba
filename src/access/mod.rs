//! Who may come in: the users file, its passwords and tokens, and the command that writes a line of it.

mod command;
mod line;
mod users;

pub use command::write_user;
pub(crate) use line::Password;
pub(crate) use users::{Known, Users};

#[cfg(test)]
pub(crate) use line::{of_token, quick_line};
