//! Which read of the store brings which of the missing keys.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;
use hashbrown::HashTable;
use tokio::sync::oneshot;

use super::flight::{Flight, FlightId, Orders, WeakFlight, depart, error_of};
use super::kept::{Freshness, Kept, Wanted, Way};
use crate::error::{Error, Result};
use crate::model::{EntityKey, FeatureGroup};
use crate::online::{Found, OnlineStore};

/// A key's place in the answer, the flight that brings it, and its position there.
struct Seat {
    at: usize,
    flight: usize,
    position: usize,
}

/// One look-up's missing keys, on their way: with flights that are reading them already, or with its own.
pub(super) struct Boarding<'a> {
    kept: &'a Arc<Kept>,
    fresh: Freshness,
    own: FlightId,
    own_weak: WeakFlight,
    orders: oneshot::Sender<Orders>,
    /// What the own flight reads, each key once.
    ordered: Orders,
    /// Where a key stands among these, by its hash.
    ordered_at: HashTable<(u64, usize)>,
    /// The own one first.
    flights: Vec<Flight>,
    places: HashMap<FlightId, usize>,
    seats: Vec<Seat>,
    joined: u64,
}

impl<'a> Boarding<'a> {
    pub(super) fn new(
        kept: &'a Arc<Kept>,
        store: &Arc<dyn OnlineStore>,
        group: &Arc<FeatureGroup>,
        own: FlightId,
        fresh: Freshness,
    ) -> Result<Self> {
        let (orders, receiver) = oneshot::channel();
        let flight = depart(Arc::clone(store), Arc::clone(group), receiver);
        let own_weak = flight.downgrade().ok_or_else(|| Error::internal("a read ended before it began"))?;
        let ordered = Orders {
            kept: Arc::clone(kept),
            group: group.id.into(),
            flight: own,
            begun_us: fresh.now_us,
            keys: Vec::new(),
        };
        Ok(Self {
            kept,
            fresh,
            own,
            own_weak,
            orders,
            ordered,
            ordered_at: HashTable::new(),
            flights: vec![flight],
            places: HashMap::new(),
            seats: Vec::new(),
            joined: 0,
        })
    }

    /// Finds a way for the key asked at `at`; one that has just been brought is answered at once.
    pub(super) fn board(&mut self, key: &EntityKey, at: usize, found: &mut Found) {
        let asked = self.kept.asked(self.ordered.group, key.as_bytes());
        let same =
            |&(hash, position): &(u64, usize)| hash == asked.hash && self.ordered.keys[position] == *key;
        if let Some(&(_, position)) = self.ordered_at.find(asked.hash, same) {
            self.seats.push(Seat { at, flight: 0, position });
            return;
        }
        let position = self.ordered.keys.len();
        match self.kept.board(
            asked,
            self.fresh,
            Wanted { flight: self.own, answer: &self.own_weak, position },
        ) {
            Way::Found(entry) => {
                found.entries.put(at, entry.as_deref());
                found.cache_misses -= 1;
            }
            Way::Joined(id, flight, position) => {
                let flights = &mut self.flights;
                let place = *self.places.entry(id).or_insert_with(|| {
                    flights.push(flight);
                    flights.len() - 1
                });
                self.seats.push(Seat { at, flight: place, position });
                self.joined += 1;
            }
            Way::Read => {
                self.ordered.keys.push(key.clone());
                self.ordered_at.insert_unique(asked.hash, (asked.hash, position), |(hash, _)| *hash);
                self.seats.push(Seat { at, flight: 0, position });
            }
        }
    }

    /// Keys that the own flight reads.
    pub(super) fn own_keys(&self) -> usize {
        self.ordered.keys.len()
    }

    /// Keys that other flights are reading.
    pub(super) fn joined(&self) -> u64 {
        self.joined
    }

    /// Waits for all flights, and hands out what they bring.
    pub(super) async fn fly(self, found: &mut Found) -> Result<()> {
        let Self { orders, ordered, mut flights, seats, .. } = self;
        // Without keys of its own there is nothing to read; place 0 is not among the seats then.
        let first = if ordered.keys.is_empty() { 1 } else { 0 };
        // Refused only when nobody waits for the flight, and then it need not fly.
        let _ = orders.send(ordered);
        let answers = try_join_all(flights.drain(first..)).await.map_err(|error| error_of(&error))?;
        for Seat { at, flight, position } in seats {
            let brought = answers.get(flight - first).filter(|entries| position < entries.len());
            let brought = brought.ok_or_else(|| Error::internal("a read of the online store lost a key"))?;
            found.entries.put(at, brought.get(position));
        }
        Ok(())
    }
}
