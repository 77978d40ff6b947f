//! The worker's thread: pinned, polling without end or with naps.

use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::Worker;
use crate::io::Port;

/// How a worker waits for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// It never sleeps.
    Busy,
    /// After a while without packets it sleeps until one arrives.
    Adaptive,
}

/// How long an adaptive worker polls in vain before it sleeps. Longer than the gap between the
/// packets of a busy flow, short enough that an idle node costs next to nothing.
const SPIN: Duration = Duration::from_micros(30);

/// How long it sleeps at most: time for maintenance.
const NAP_MS: u16 = 100;

/// How often counters are published and idle ports are looked after.
const MAINTENANCE: Duration = Duration::from_millis(10);

/// How often the kernel is asked for its drop counters.
const KERNEL_DROPS: Duration = Duration::from_millis(500);

impl<P: Port> Worker<P> {
    /// Polls until told to stop, then lets go of everything. For a thread of its own.
    pub fn run(mut self, polling: Polling, cpu: Option<usize>) {
        if let Some(cpu) = cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
        {
            tracing::warn!(worker = %self.parts.id, cpu, "cannot pin to this CPU; running unpinned");
        }
        let epoll = match Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC) {
            Ok(epoll) => Some(epoll),
            Err(error) => {
                tracing::warn!(%error, "cannot sleep without epoll; polling without end");
                None
            }
        };
        let mut schedule = Schedule::new();
        let mut watched = Watched::default();
        while !self.stopping {
            let worked = self.poll() > 0;
            let now = Instant::now();
            if schedule.maintenance_due(now) {
                if schedule.kernel_drops_due(now) {
                    self.read_kernel_drops();
                }
                self.maintain();
            }
            if worked {
                schedule.worked = now;
                continue;
            }
            match (&epoll, polling) {
                (Some(epoll), Polling::Adaptive) if now - schedule.worked > SPIN => {
                    self.nap(epoll, &mut watched);
                    schedule.worked = Instant::now();
                }
                _ => std::hint::spin_loop(),
            }
        }
        self.close();
    }

    /// Sleeps until a port has a packet, another worker rings, or the nap is over.
    fn nap(&mut self, epoll: &Epoll, watched: &mut Watched) {
        self.obey();
        self.watch(epoll, watched);
        let bells = self.parts.lanes.bells.clone();
        let Some(bell) = bells.get(self.parts.id.index()) else { return };
        bell.announce_sleep();
        if self.poll() == 0 {
            self.counters.sleeps += 1;
            self.publish();
            let mut events = [EpollEvent::empty(); 8];
            // Woken by a signal or by nothing: the loop looks anyway.
            let _ = epoll.wait(&mut events, EpollTimeout::from(NAP_MS));
        }
        bell.awake();
    }

    /// Makes `epoll` watch the ports that there are now.
    fn watch(&mut self, epoll: &Epoll, watched: &mut Watched) {
        let bells = self.parts.lanes.bells.clone();
        if !watched.bell
            && let Some(bell) = bells.get(self.parts.id.index())
        {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX);
            watched.bell = epoll.add(bell.event(), event).is_ok();
        }
        if watched.changes == self.port_changes {
            return;
        }
        watched.changes = self.port_changes;
        // A closed socket has left the set by itself; adding one that is in it changes nothing.
        for (number, slot) in self.slots.iter().enumerate() {
            if let Some(fd) = slot.as_ref().and_then(|slot| slot.port.poll_fd()) {
                let _ = epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number as u64));
            }
        }
    }
}

/// What the worker's epoll watches.
#[derive(Debug, Default)]
struct Watched {
    bell: bool,
    /// `port_changes` of the worker when its ports were added last.
    changes: u64,
}

#[derive(Debug)]
struct Schedule {
    worked: Instant,
    maintained: Instant,
    asked_kernel: Instant,
}

impl Schedule {
    fn new() -> Self {
        let now = Instant::now();
        Self { worked: now, maintained: now, asked_kernel: now }
    }

    fn maintenance_due(&mut self, now: Instant) -> bool {
        let due = now - self.maintained >= MAINTENANCE;
        if due {
            self.maintained = now;
        }
        due
    }

    fn kernel_drops_due(&mut self, now: Instant) -> bool {
        let due = now - self.asked_kernel >= KERNEL_DROPS;
        if due {
            self.asked_kernel = now;
        }
        due
    }
}
