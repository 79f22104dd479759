//! One connection to a region: resolve, shake hands, and a name for what went wrong.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use souk_replication::RejectReason;
use tokio::task::JoinSet;

use crate::{
    Congestion, Ground, LinkFault, RegionAddress, ground,
    planted::{Bug, planted},
    tls::Refusals,
    transport::{node_endpoint, node_transport},
};

/// Patience of a first connection: three round trips over a satellite, and a busy region.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A region that is silent is tried again after about this, while the earlier attempts still wait: the packets of a handshake are
/// sent again after 1, 3 and 7 s, and a path that is well again would stay unused for so long. With [`CONNECT_MAX`] five are
/// under way at once, and one more for each further region.
const ATTEMPT_EVERY_MS: u64 = 1_000;
/// Patience of a second connection that races the first.
const REDIAL_MAX: Duration = Duration::from_secs(1);
/// So long one region is waited for before the next is asked as well: two round trips of 150 ms. One that was killed does not
/// refuse, it is silent.
const HEAD_START: Duration = Duration::from_millis(300);
/// Before a redial, at most: nodes that lost the same path do not come back in the same millisecond.
const REDIAL_JITTER_MS_MAX: u64 = 200;
/// Patience when closing: the peer hears of it, or it times out by itself.
const CLOSE_MAX: Duration = Duration::from_secs(1);
const BACKOFF_MS_MIN: u64 = 100;
const BACKOFF_MS_MAX: u64 = 30_000;
/// The bound for a region that is only silent. It costs a silent region some datagrams a second of each node; a fleet that
/// comes back all at once is held up by the region's admission, which also tells how long to stay away.
const SILENCE_MS_MAX: u64 = 1_000;

/// Full jitter: a random pause up to a bound that doubles, so that a fleet spreads itself over the bound.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    pub(super) fn next_pause(&mut self, ground: &dyn Ground, fault: &LinkFault) -> Duration {
        if fault.come_back() > Duration::ZERO {
            // The region spreads its nodes by itself, and what came before has nothing to do with it.
            *self = Self::default();
            return fault.come_back() + ground::pause(ground, 0, BACKOFF_MS_MIN);
        }
        let is_silence = fault.is_silence() && !planted(Bug::SilenceIsRefusal);
        // The home is at another address, or will be at this one in a moment: an operator is about to make one.
        let most = if is_silence || fault.is_no_home() { SILENCE_MS_MAX } else { BACKOFF_MS_MAX };
        let bound = BACKOFF_MS_MIN.saturating_mul(1 << self.tries.min(16)).min(most);
        // No further than this fault asks for: after a minute without a home the door that a new one shuts for a moment, to open it
        // as the home's, is no reason to stay away for half a minute.
        self.tries += u32::from(bound < most);
        ground::pause(ground, BACKOFF_MS_MIN / 4, bound)
    }
}

/// Dials the regions: the one whose turn it is, and soon the others beside it.
pub(crate) struct Dialer {
    pub(super) ground: Arc<dyn Ground>,
    regions: Vec<RegionAddress>,
    client: ClientConfig,
    refusals: Refusals,
    /// Which region comes first next.
    turn: AtomicUsize,
    /// One socket per kind of peer address: IPv4 and IPv6, loopback and not.
    endpoints: Mutex<Vec<((bool, bool), Endpoint)>>,
}

impl Dialer {
    pub(crate) fn new(
        ground: Arc<dyn Ground>,
        regions: Vec<RegionAddress>,
        tls: QuicClientConfig,
        congestion: Congestion,
        refusals: Refusals,
    ) -> Self {
        let mut client = ClientConfig::new(Arc::new(tls));
        client.transport_config(Arc::new(node_transport(congestion)));
        Self { ground, regions, client, refusals, turn: AtomicUsize::new(0), endpoints: Mutex::default() }
    }

    /// Connects to a region: all of them are raced once, and then one more attempt is made each second, at one region after the
    /// other. The first that comes through is taken, and the first that fails ends them all.
    pub(super) async fn reach(self: &Arc<Self>) -> Result<(Connection, String), LinkFault> {
        let mut attempts = JoinSet::new();
        let first = self.turn.load(Ordering::Relaxed);
        for attempt in 0_usize.. {
            let dialer = self.clone();
            attempts.spawn(async move {
                match attempt {
                    0 => dialer.dial_any(first, CONNECT_MAX).await,
                    _ => {
                        let region = &dialer.regions[first.wrapping_add(attempt - 1) % dialer.regions.len()];
                        dialer
                            .dial(region, CONNECT_MAX)
                            .await
                            .map(|connection| (connection, region.addr.clone()))
                    }
                }
            });
            let next = ground::pause(&*self.ground, ATTEMPT_EVERY_MS * 3 / 4, ATTEMPT_EVERY_MS * 5 / 4);
            tokio::select! {
                biased;
                Some(dialled) = attempts.join_next() => {
                    return dialled.unwrap_or_else(|e| Err(LinkFault::Lost(format!("an attempt stopped: {e}"))));
                }
                () = tokio::time::sleep(next), if !planted(Bug::SilenceIsRefusal) => {}
            }
        }
        unreachable!("attempts are made until one ends")
    }

    /// Connects to the region whose turn it is, or, if that does not answer at once, to whichever answers first. Its turn it
    /// is then; when none answers, that of the next. Of several faults a silence is told: it may end at any moment.
    pub(crate) async fn dial_any(
        self: &Arc<Self>,
        turn: usize,
        patience: Duration,
    ) -> Result<(Connection, String), LinkFault> {
        let mut left = (0..self.regions.len()).map(|after| turn.wrapping_add(after) % self.regions.len());
        // Dropped with those that are still on their way: their peers never hear of us.
        let mut dialling = JoinSet::new();
        let mut first_fault = None;
        loop {
            let next = left.next();
            if let Some(at) = next {
                let this = Arc::clone(self);
                dialling.spawn(async move { (at, this.dial(&this.regions[at], patience).await) });
            }
            let ended = match next {
                Some(_) => tokio::time::timeout(HEAD_START, dialling.join_next()).await,
                None => Ok(dialling.join_next().await),
            };
            match ended {
                // It has not answered yet, and the next one is asked too.
                Err(_) => {}
                Ok(Some(Ok((at, Ok(connection))))) => {
                    if at != turn % self.regions.len() {
                        let silent = &self.regions[turn % self.regions.len()].addr;
                        tracing::warn!(
                            silent,
                            answered = self.regions[at].addr,
                            "another region answered first"
                        );
                    }
                    self.turn.store(at, Ordering::Relaxed);
                    return Ok((connection, self.regions[at].addr.clone()));
                }
                Ok(Some(Ok((_, Err(fault))))) => {
                    if first_fault
                        .as_ref()
                        .is_none_or(|told: &LinkFault| fault.is_silence() && !told.is_silence())
                    {
                        first_fault = Some(fault);
                    }
                }
                Ok(Some(Err(panic))) => {
                    first_fault.get_or_insert_with(|| LinkFault::Lost(format!("dialling: {panic}")));
                }
                Ok(None) => {
                    self.pass_on();
                    return Err(first_fault.expect("there is a region, and each that was dialled has ended"));
                }
            }
        }
    }

    /// The region whose turn it is has not kept its connection: another one comes first next.
    pub(super) fn pass_on(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries a second connection after a random short wait: to another region before the present one, which may be there and
    /// yet do nothing.
    pub(super) async fn redial(self: &Arc<Self>) -> Result<(Connection, String), LinkFault> {
        tokio::time::sleep(ground::pause(&*self.ground, 0, REDIAL_JITTER_MS_MAX)).await;
        self.dial_any(self.turn.load(Ordering::Relaxed).wrapping_add(1), REDIAL_MAX).await
    }

    async fn dial(&self, region: &RegionAddress, patience: Duration) -> Result<Connection, LinkFault> {
        let addr = &region.addr;
        let resolve = |detail: String| LinkFault::Resolve { addr: addr.clone(), detail };
        let no_answer = |detail: String| LinkFault::NoAnswer { addr: addr.clone(), detail };
        let resolved = tokio::time::timeout(patience, tokio::net::lookup_host(addr)).await;
        let resolved = match resolved {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(e)) => return Err(resolve(e.to_string())),
            Err(_) => return Err(resolve("no answer in time".to_owned())),
        };
        let mut fault = resolve("no address".to_owned());
        for remote in resolved {
            let endpoint =
                self.endpoint(remote.ip()).map_err(|e| no_answer(format!("no local socket: {e}")))?;
            // What an earlier attempt left must not explain this one. Two that are dialled at once may swap what they say:
            // they show the same name.
            self.refusals.take();
            let connecting = match endpoint.connect_with(self.client.clone(), remote, &region.server_name) {
                Ok(connecting) => connecting,
                Err(e) => return Err(no_answer(e.to_string())),
            };
            fault = match tokio::time::timeout(patience, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => match (self.refusals.take(), error) {
                    (Some(refusal), _) => refusal,
                    (None, ConnectionError::TimedOut) => no_answer("timed out".to_owned()),
                    (None, error) => fault_of(&error),
                },
                Err(_) => no_answer(format!("no handshake within {} ms", patience.as_millis())),
            };
        }
        Err(fault)
    }

    fn endpoint(&self, remote: IpAddr) -> std::io::Result<Endpoint> {
        let kind = (remote.is_ipv4(), remote.is_loopback());
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, endpoint)) = endpoints.iter().find(|(known, _)| *known == kind) {
            return Ok(endpoint.clone());
        }
        let endpoint = node_endpoint(&*self.ground, remote)?;
        endpoints.push((kind, endpoint.clone()));
        Ok(endpoint)
    }

    /// Ends all connections and waits shortly until the peers know.
    pub(crate) async fn close(&self) {
        let endpoints = std::mem::take(&mut *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, endpoint) in endpoints {
            endpoint.close(0_u32.into(), b"shutdown");
            // The close is on its way; a peer that does not confirm it times out.
            let _ = tokio::time::timeout(CLOSE_MAX, endpoint.wait_idle()).await;
        }
    }
}

/// A name for how a connection ended.
pub(crate) fn fault_of(error: &ConnectionError) -> LinkFault {
    match error {
        ConnectionError::ApplicationClosed(close) => LinkFault::Rejected {
            reason: RejectReason::from_code(u16::try_from(close.error_code.into_inner()).unwrap_or(u16::MAX)),
            message: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        // Codes 0x100 + TLS alert (RFC 9001, section 4.8).
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            0x2 => LinkFault::Rejected {
                reason: RejectReason::Full,
                message: "the region takes no more connections".to_owned(),
            },
            0x12d => LinkFault::CertificateRefused("it is outside of its validity".to_owned()),
            // Unknown authority, or one of the same name with another key.
            0x130 | 0x133 => {
                LinkFault::CertificateRefused("it does not know our certificate authority".to_owned())
            }
            0x12a..=0x12f | 0x131 | 0x174 => LinkFault::CertificateRefused(close.to_string()),
            0x178 => LinkFault::Tls("the peer does not speak souk-sync/1".to_owned()),
            0x100..=0x1ff => LinkFault::Tls(close.to_string()),
            _ => LinkFault::Lost(close.to_string()),
        },
        ConnectionError::TransportError(error) if (0x100..=0x1ff).contains(&u64::from(error.code)) => {
            LinkFault::Tls(error.to_string())
        }
        ConnectionError::Reset => LinkFault::Lost("the region was restarted".to_owned()),
        ConnectionError::TimedOut => LinkFault::Lost("the region went silent".to_owned()),
        other => LinkFault::Lost(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::Machine;

    #[test]
    fn back_off_starts_quick_and_stays_below_its_bounds() {
        let mut backoff = Backoff::default();
        let silence = LinkFault::Lost("the region went silent".to_owned());
        let refusal = LinkFault::WrongAuthority;
        assert!(backoff.next_pause(&Machine, &refusal) <= Duration::from_millis(BACKOFF_MS_MIN));
        for _ in 0..100 {
            assert!(backoff.next_pause(&Machine, &refusal) <= Duration::from_millis(BACKOFF_MS_MAX));
            assert!(backoff.next_pause(&Machine, &silence) <= Duration::from_millis(SILENCE_MS_MAX));
        }
        // Silence, and a standby's no, are no measure of a refusal that comes after them.
        let no_home =
            LinkFault::Rejected { reason: RejectReason::Standby, message: "it follows the home".to_owned() };
        for _ in 0..20 {
            let mut backoff = Backoff::default();
            for _ in 0..30 {
                backoff.next_pause(&Machine, &silence);
                backoff.next_pause(&Machine, &no_home);
            }
            assert!(backoff.next_pause(&Machine, &refusal) <= Duration::from_millis(2 * SILENCE_MS_MAX));
        }
    }
}
