//! The users file, as it is now: it is read again when it has changed.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;

use super::line::{self, Password, Proof, TokenDigest};
use crate::clock::Clock;
use crate::error::{Error, Result};

/// How often the file is looked at, at most.
const LOOK_INTERVAL_US: i64 = 1_000_000;

/// Of no password, with the parameters of the command, for a file without passwords.
const DECOY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$ZGVjb3lkZWNveWRlY295IQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The users of a file.
#[derive(Debug)]
pub(crate) struct Users {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    next_look_us: AtomicI64,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    /// Of the file that was last looked at, whether or not it could be used.
    stamp: Stamp,
    known: Arc<Known>,
}

/// Changes with the contents: modification time in seconds and nanoseconds, size, file number.
type Stamp = (i64, i64, u64, u64);

/// Users and what proves them.
#[derive(Debug)]
pub(crate) struct Known {
    passwords: HashMap<Arc<str>, Arc<Password>>,
    tokens: HashMap<TokenDigest, Arc<str>>,
    decoy: Arc<Password>,
}

impl Users {
    /// # Errors
    /// `Invalid`, in one line that names the setting.
    pub(crate) fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let stamp = stamp(path)?;
        let known = Arc::new(read(path)?);
        let next_look_us = AtomicI64::new(clock.now_us().saturating_add(LOOK_INTERVAL_US));
        let current = RwLock::new(Current { stamp, known });
        Ok(Self { path: path.to_owned(), clock, next_look_us, current })
    }

    /// Everybody whom the file names now, or named at last when it cannot be read now.
    pub(crate) fn current(&self) -> Arc<Known> {
        let (now_us, next_us) = (self.clock.now_us(), self.next_look_us.load(Ordering::Relaxed));
        // A clock that was set back must not keep us from looking.
        let due = now_us >= next_us || now_us < next_us.saturating_sub(LOOK_INTERVAL_US);
        if due {
            let next = now_us.saturating_add(LOOK_INTERVAL_US);
            if self.next_look_us.compare_exchange(next_us, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                self.look();
            }
        }
        Arc::clone(&self.current.read().known)
    }

    fn look(&self) {
        let file = self.path.display();
        let stamp = match stamp(&self.path) {
            Ok(stamp) if stamp == self.current.read().stamp => return,
            Ok(stamp) => stamp,
            Err(error) => return tracing::error!(%error, "the users are those of before"),
        };
        let read = read(&self.path);
        let mut current = self.current.write();
        current.stamp = stamp;
        match read {
            Ok(known) => {
                current.known = Arc::new(known);
                tracing::info!(%file, "the users file has changed and was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the users file has changed; the users are those of before")
            }
        }
    }
}

impl Known {
    /// The user's password, with the name as the file has it.
    pub(crate) fn password(&self, name: &str) -> Option<(&Arc<str>, &Arc<Password>)> {
        self.passwords.get_key_value(name)
    }

    /// A password that belongs to nobody: who is not known is checked against it, so that the time which that takes
    /// does not tell who is.
    pub(crate) fn decoy(&self) -> &Arc<Password> {
        &self.decoy
    }

    /// Whose token it is.
    pub(crate) fn user_of_token(&self, token: &[u8]) -> Option<&Arc<str>> {
        self.tokens.get(&line::digest(token))
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!("users_file: cannot read {}: {error}", path.display()))
}

fn stamp(path: &Path) -> Result<Stamp> {
    let file = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    Ok((file.mtime(), file.mtime_nsec(), file.size(), file.ino()))
}

fn read(path: &Path) -> Result<Known> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    parse(&text).map_err(|(number, why)| {
        Error::invalid(format!("users_file: {} line {number}: {why}", path.display()))
    })
}

/// The users of a file's text, or the line that is wrong and why.
fn parse(text: &str) -> Result<Known, (usize, &'static str)> {
    let (mut passwords, mut tokens) = (HashMap::new(), HashMap::new());
    let mut decoy = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, proof) = line::parse(line).map_err(|why| (number, why))?;
        let name: Arc<str> = name.into();
        match proof {
            Proof::Password(password) => {
                decoy.get_or_insert_with(|| Arc::clone(&password)); // its parameters are what counts
                if passwords.insert(name, password).is_some() {
                    return Err((number, "a second password for the same user"));
                }
            }
            Proof::Token(token) => {
                if tokens.insert(token, name).is_some() {
                    return Err((number, "a token that stands in an earlier line, too"));
                }
            }
        }
    }
    if passwords.is_empty() && tokens.is_empty() {
        return Err((1, "nobody: a line is NAME:HASH, and `fletching user NAME` writes one"));
    }
    let decoy = match decoy {
        Some(decoy) => decoy,
        None => Password::parse(DECOY).map(Arc::new).map_err(|why| (1, why))?,
    };
    Ok(Known { passwords, tokens, decoy })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::clock::ManualClock;

    fn token_line(name: &str, token: &str) -> String {
        line::of_token(name, token)
    }

    fn who(users: &Users, token: &str) -> Option<String> {
        users.current().user_of_token(token.as_bytes()).map(|name| name.to_string())
    }

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| fs::write(file.path(), text).unwrap();
        let clock = Arc::new(ManualClock::new(0));
        write(&format!("# services\n\n  {}\n", token_line("a", "one")));
        let users = Users::open(file.path(), clock.clone()).unwrap();
        assert_eq!(who(&users, "one").as_deref(), Some("a"));
        write(&format!("{}\n{}\n", token_line("b", "two"), token_line("b", "three")));
        assert_eq!(who(&users, "one").as_deref(), Some("a"), "looked at once a second");
        clock.advance(LOOK_INTERVAL_US);
        assert_eq!(who(&users, "one"), None);
        assert_eq!((who(&users, "two"), who(&users, "three")), (Some("b".into()), Some("b".into())));
        // What cannot be used changes nothing, until it is mended.
        write("nonsense");
        clock.advance(LOOK_INTERVAL_US);
        assert_eq!(who(&users, "two").as_deref(), Some("b"));
        fs::remove_file(file.path()).unwrap();
        clock.advance(LOOK_INTERVAL_US);
        assert_eq!(who(&users, "two").as_deref(), Some("b"));
        write(&token_line("c", "two"));
        clock.set(0);
        assert_eq!(who(&users, "two").as_deref(), Some("c"));
    }

    #[test]
    fn a_bad_file_names_the_setting_and_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = token_line("a", "one");
        let hash = Password::of("secret").unwrap();
        for (text, expected) in [
            (String::new(), "line 1: nobody"),
            ("# nobody\n".into(), "line 1: nobody"),
            (format!("\n{line}\n{line}"), "line 3: a token that stands in an earlier line"),
            (format!("{0}\n{0}", hash.line("ada")), "line 2: a second password"),
            (format!("{line}\nada:hunter2"), "line 2: neither"),
        ] {
            fs::write(file.path(), &text).unwrap();
            let error = Users::open(file.path(), Arc::new(ManualClock::new(0))).unwrap_err().to_string();
            assert!(error.starts_with("users_file: ") && error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
        let missing = Path::new("/does/not/exist");
        let error = Users::open(missing, Arc::new(ManualClock::new(0))).unwrap_err().to_string();
        assert!(error.starts_with("users_file: cannot read /does/not/exist"), "{error}");
    }
}
