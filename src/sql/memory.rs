//! A bound of its own on what one statement holds in memory, within that of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::common::{Result, resources_datafusion_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// Gives what the server's pool gives, up to so many bytes.
#[derive(Debug)]
pub(super) struct BoundedPool {
    shared: Arc<dyn MemoryPool>,
    bytes_max: usize,
    used: AtomicUsize,
}

impl BoundedPool {
    pub(super) fn new(shared: Arc<dyn MemoryPool>, bytes_max: usize) -> Self {
        Self { shared, bytes_max, used: AtomicUsize::new(0) }
    }
}

impl MemoryPool for BoundedPool {
    fn register(&self, consumer: &MemoryConsumer) {
        self.shared.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.shared.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.shared.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used.fetch_sub(shrink, Ordering::Relaxed);
        self.shared.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let within = |used: usize| used.checked_add(additional).filter(|bytes| *bytes <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|used| {
            resources_datafusion_err!(
                "{} needs {additional} bytes more than the {used} that the statement holds, and the memory_limit of \
                 this session is {} bytes",
                reservation.consumer().name(),
                self.bytes_max
            )
        })?;
        self.shared.try_grow(reservation, additional).inspect_err(|_| {
            self.used.fetch_sub(additional, Ordering::Relaxed);
        })
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use datafusion::execution::memory_pool::GreedyMemoryPool;

    #[test]
    fn the_narrower_bound_holds_and_what_was_refused_is_not_counted() {
        let server: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100));
        let first: Arc<dyn MemoryPool> = Arc::new(BoundedPool::new(Arc::clone(&server), 60));
        let second: Arc<dyn MemoryPool> = Arc::new(BoundedPool::new(Arc::clone(&server), 60));
        let (a, b) = (MemoryConsumer::new("a").register(&first), MemoryConsumer::new("b").register(&second));
        a.try_grow(60).unwrap();
        assert!(a.try_grow(1).unwrap_err().to_string().contains("memory_limit"), "its own bound");
        assert!(b.try_grow(41).is_err(), "the server's bound");
        assert_eq!((first.reserved(), second.reserved()), (60, 0));
        b.try_grow(40).unwrap();
        a.free();
        assert_eq!((first.reserved(), server.reserved()), (0, 40));
    }
}
