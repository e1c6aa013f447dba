//! Which session a call belongs to: the one its cookie names, or else its connection's. Both are of one user: another's
//! calls, with the same cookie or over the same connection, have sessions of their own. A connection's session gets a
//! cookie when a client first sets an option in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::auth::Caller;
use super::listener::ConnectionId;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::sql::{Engine, Owner, Session};

/// The cookie's name in the Flight SQL specification.
const COOKIE: &str = "arrow_flight_session_id";
const COOKIE_BYTES_MAX: usize = 128;

/// Every session of the server. A connection's session ends with the connection, a cookie's by lying idle.
#[derive(Debug)]
pub(crate) struct Sessions {
    engine: Arc<Engine>,
    clock: Arc<dyn Clock>,
    by_cookie_max: usize,
    idle_timeout_us: i64,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// None until the connection's first call, and as a rule one from then on.
    by_connection: HashMap<ConnectionId, Vec<Seat>>,
    by_cookie: HashMap<(User, String), Kept>,
}

/// `None` where nobody is asked who they are.
type User = Option<Arc<str>>;

/// What a user has on a connection.
#[derive(Debug)]
struct Seat {
    user: User,
    session: Arc<Session>,
    /// The cookie by which other connections find the session too, if it was given away.
    cookie: Option<String>,
}

#[derive(Debug)]
struct Kept {
    session: Arc<Session>,
    used_us: i64,
    /// Whether a client has sent the cookie: not all keep those that they are given.
    is_known: bool,
}

impl Sessions {
    pub(super) fn new(
        engine: Arc<Engine>,
        clock: Arc<dyn Clock>,
        by_cookie_max: usize,
        idle_timeout: Duration,
    ) -> Self {
        let idle_timeout_us = i64::try_from(idle_timeout.as_micros()).unwrap_or(i64::MAX);
        Self { engine, clock, by_cookie_max, idle_timeout_us, open: Mutex::default() }
    }

    /// A connection came: from now on its calls share a session.
    pub(super) fn connected(&self, connection: ConnectionId) {
        self.open.lock().by_connection.insert(connection, Vec::new());
    }

    /// A connection went, and with it its session, as soon as no call uses it any more.
    pub(super) fn disconnected(&self, connection: ConnectionId) {
        let mut open = self.open.lock();
        let seats = open.by_connection.remove(&connection).unwrap_or_default();
        let given_away = seats.iter().filter_map(|seat| Some((seat.user.clone(), seat.cookie.clone()?)));
        let unused: Vec<(User, String)> =
            given_away.filter(|key| open.by_cookie.get(key).is_some_and(|kept| !kept.is_known)).collect();
        let kept: Vec<Kept> = unused.iter().filter_map(|key| open.by_cookie.remove(key)).collect();
        drop(open); // before the sessions: temporary tables may take a while to free
        drop((seats, kept));
    }

    /// Makes the session of a call one that outlives its connection; returns the `set-cookie` by which the client finds
    /// it again. `None` where the client has a cookie, or no more sessions are kept.
    pub(super) fn name(&self, caller: &Caller, headers: &MetadataMap) -> Option<String> {
        if cookie(headers).is_some() {
            return None;
        }
        let used_us = self.clock.now_us();
        let mut open = self.open.lock();
        let Open { by_connection, by_cookie } = &mut *open;
        let seats = by_connection.get_mut(&caller.connection)?;
        let seat = seats.iter_mut().find(|seat| seat.user == caller.user)?;
        if seat.cookie.is_none() && by_cookie.len() < self.by_cookie_max {
            let name = Uuid::new_v4().to_string();
            let kept = Kept { session: Arc::clone(&seat.session), used_us, is_known: false };
            by_cookie.insert((caller.user.clone(), name.clone()), kept);
            seat.cookie = Some(name);
        }
        seat.cookie.as_ref().map(|name| format!("{COOKIE}={name}"))
    }

    /// Ends the session of a call, as soon as no other call uses it any more; returns the `set-cookie` by which the
    /// client forgets it, if it has one.
    pub(super) fn close(&self, caller: &Caller, headers: &MetadataMap) -> Option<String> {
        let mut open = self.open.lock();
        let named = cookie(headers).map(str::to_owned);
        let own = match named {
            Some(_) => Vec::new(),
            None => { open.by_connection.get_mut(&caller.connection).into_iter() }
                .flat_map(|seats| seats.extract_if(.., |seat| seat.user == caller.user))
                .collect::<Vec<Seat>>(),
        };
        let name = named.or_else(|| own.first().and_then(|seat| seat.cookie.clone()));
        let kept = name.as_ref().and_then(|name| open.by_cookie.remove(&(caller.user.clone(), name.clone())));
        let mut others = Vec::new();
        if let Some(kept) = &kept {
            for seats in open.by_connection.values_mut() {
                others.extend(seats.extract_if(.., |seat| Arc::ptr_eq(&seat.session, &kept.session)));
            }
        }
        drop(open); // as above
        drop((own, kept, others));
        name.map(|_| format!("{COOKIE}=; Max-Age=0"))
    }

    /// The session of a call.
    pub(super) fn of(&self, caller: &Caller, headers: &MetadataMap) -> Result<Arc<Session>> {
        match cookie(headers) {
            Some(id) => self.by_cookie(caller, id),
            None => Ok(self.by_connection(caller)),
        }
    }

    /// Ends the sessions that have lain idle for too long.
    pub(crate) fn end_idle(&self) {
        let now_us = self.clock.now_us();
        // A session in use has another owner, and does not lie idle however long its query runs.
        let idle = |_: &(User, String), kept: &mut Kept| {
            Arc::strong_count(&kept.session) == 1
                && now_us.saturating_sub(kept.used_us) > self.idle_timeout_us
        };
        let ended: Vec<Kept> = self.open.lock().by_cookie.extract_if(idle).map(|(_, kept)| kept).collect();
        drop(ended); // outside the lock, as above
    }

    /// A new one for whoever is at the other end.
    fn session(&self, caller: &Caller) -> Arc<Session> {
        self.engine.session_of(Owner { user: caller.user.clone(), client: Some(caller.connection.peer) })
    }

    fn by_connection(&self, caller: &Caller) -> Arc<Session> {
        let mut open = self.open.lock();
        // The connection went while its call was on the way: nothing to share, nothing to keep.
        let Some(seats) = open.by_connection.get_mut(&caller.connection) else {
            return self.session(caller);
        };
        if let Some(seat) = seats.iter().find(|seat| seat.user == caller.user) {
            return Arc::clone(&seat.session);
        }
        let session = self.session(caller);
        seats.push(Seat { user: caller.user.clone(), session: Arc::clone(&session), cookie: None });
        session
    }

    fn by_cookie(&self, caller: &Caller, id: &str) -> Result<Arc<Session>> {
        if id.is_empty() || id.len() > COOKIE_BYTES_MAX || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid(format!(
                "the cookie {COOKIE} must be 1 to {COOKIE_BYTES_MAX} visible ASCII characters"
            )));
        }
        self.end_idle(); // one whose time is over must not come back, however long ago the last sweep was
        let now_us = self.clock.now_us();
        let mut open = self.open.lock();
        let key = (caller.user.clone(), id.to_owned());
        if let Some(kept) = open.by_cookie.get_mut(&key) {
            (kept.used_us, kept.is_known) = (now_us, true);
            return Ok(Arc::clone(&kept.session));
        }
        if open.by_cookie.len() >= self.by_cookie_max {
            return Err(Error::exhausted(format!(
                "{} sessions are kept by cookie, and sessions_max allows no more; retry later or send no cookie",
                open.by_cookie.len()
            )));
        }
        let session = self.session(caller);
        open.by_cookie.insert(key, Kept { session: Arc::clone(&session), used_us: now_us, is_known: true });
        Ok(session)
    }
}

/// The session id among the cookies of a call.
fn cookie(headers: &MetadataMap) -> Option<&str> {
    headers
        .get_all("cookie")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then(|| value.trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    use crate::clock::ManualClock;
    use crate::offline::OfflineStore;
    use crate::online::{self, Backend, OnlineOptions};
    use crate::sql::{CopyDirectories, EngineParts, RunLimits};

    fn nobody() -> Caller {
        Caller { connection: ConnectionId::for_test(0), user: None }
    }

    async fn engine(dir: &Path, clock: Arc<dyn Clock>) -> Arc<Engine> {
        let (catalog, warehouse) = (dir.join("catalog.db"), dir.join("warehouse"));
        let offline = OfflineStore::open(&catalog, &warehouse, Arc::clone(&clock)).await.unwrap();
        let backend = Backend::Embedded { path: dir.join("online.redb") };
        let options = OnlineOptions { backend, timeout: Duration::from_secs(5), cache: None };
        Engine::new(EngineParts {
            offline: Arc::new(offline),
            online: online::open(options, Arc::clone(&clock)).await.unwrap(),
            clock,
            memory_limit_bytes: None,
            spill_dir: dir.join("spill"),
            run_limits: RunLimits::default(),
            endpoints: 1,
            copy_directories: CopyDirectories::default(),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_sweep_ends_what_lies_idle_and_not_what_runs() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(0));
        let engine = engine(dir.path(), clock.clone()).await;
        let sessions = Sessions::new(engine, clock.clone(), 10, Duration::from_secs(60));
        let idle = Arc::downgrade(&sessions.by_cookie(&nobody(), "idle").unwrap());
        let running = sessions.by_cookie(&nobody(), "running").unwrap();
        clock.advance(60_000_000);
        sessions.end_idle();
        assert!(idle.upgrade().is_some(), "its time is not over");
        clock.advance(1);
        sessions.end_idle();
        assert!(idle.upgrade().is_none(), "ended");
        assert!(
            Arc::ptr_eq(&running, &sessions.by_cookie(&nobody(), "running").unwrap()),
            "in use all the time"
        );
    }

    #[tokio::test]
    async fn a_session_is_reached_by_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(0));
        let sessions =
            Sessions::new(engine(dir.path(), clock.clone()).await, clock, 10, Duration::from_secs(60));
        let connection = ConnectionId::for_test(1);
        sessions.connected(connection);
        let (mut by_cookie, mut by_connection) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            for user in [None, Some("ada"), Some("bob")] {
                let caller = Caller { connection, user: user.map(Arc::from) };
                by_cookie.push(sessions.by_cookie(&caller, "the-same").unwrap());
                by_connection.push(sessions.by_connection(&caller));
            }
        }
        for all in [by_cookie, by_connection] {
            let mine = |user: usize| Arc::ptr_eq(&all[user], &all[user + 3]);
            assert!((0..3).all(mine) && !Arc::ptr_eq(&all[0], &all[1]) && !Arc::ptr_eq(&all[1], &all[2]));
        }
    }

    #[test]
    fn the_session_cookie_is_found_among_others() {
        for (line, expected) in [
            ("arrow_flight_session_id=abc", Some("abc")),
            ("a=b; arrow_flight_session_id=\"abc\"; c=d", Some("abc")),
            ("a=b;arrow_flight_session_id=", Some("")),
            ("not_arrow_flight_session_id=abc", None),
            ("", None),
        ] {
            let mut headers = MetadataMap::new();
            headers.insert("cookie", line.parse().unwrap());
            assert_eq!(cookie(&headers), expected, "{line}");
        }
    }
}
