//! What fuzzers throw at the door; see `tests/fuzz`.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::auth;
use super::commands::Request;
use super::handle::{self, Statement, Ticket};
use super::security::Seals;
use crate::clock::{Clock, SystemClock};

/// Any bytes as what a client sends: a command or a ticket, what is within a handle or a ticket, and a greeting.
pub fn flight_request(bytes: &[u8]) {
    static SEALS: LazyLock<Seals> =
        LazyLock::new(|| Seals::for_a_day(&(Arc::new(SystemClock) as Arc<dyn Clock>)));
    let seals = &*SEALS;
    // Most of it is refused; what counts is that all of it is answered.
    let _ = Request::of_command(&Bytes::copy_from_slice(bytes), seals);
    let [handle, ticket] = handle::sealed(bytes, seals);
    let _ = Statement::from_handle(&handle, seals);
    let _ = Ticket::from_bytes(&ticket, seals);
    auth::read_greetings(bytes);
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_bytes_are_read() {
        for bytes in [&b""[..], b"{", b"{\"query\": 7}", &[0xff; 64], &[0x0a, 0x03, b'a', b':', b'b']] {
            super::flight_request(bytes);
        }
    }
}
