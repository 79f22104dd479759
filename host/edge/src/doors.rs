//! The doors for shoppers, opened together: sockets, certificates and whoever gets them, HTTP/3 beside HTTPS.
//!
//! Everything that can fail fails before anything runs: a port that is taken and a certificate that cannot be read are the
//! most likely reasons not to start. Called by [`crate::node`] and [`crate::proxy`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use souk_config::doors::Doors;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::Acme;
use crate::gate::Gate;
use crate::http3::{Http3Listener, Http3Metrics};
use crate::listen::{Answer, ListenLimits, Listener, Sockets};
use crate::running::{Listening, RunError};
use crate::tls::{Certificates, quic_config, server_config};

/// Times that another port is taken where any will do and the one that TCP gave is in use for UDP.
const ANY_PORT_TRIES: usize = 8;

/// Open doors, not yet accepting.
pub(crate) struct OpenDoors {
    clear: Vec<Listener>,
    secure: Vec<(Listener, Option<Http3Listener>)>,
    tls: Option<(Arc<Certificates>, Arc<ServerConfig>)>,
    acme: Option<Acme>,
}

impl OpenDoors {
    /// Must be called within a tokio runtime.
    pub(crate) fn open(doors: &Doors, registry: &mut Registry) -> Result<Self, RunError> {
        let metrics = &Http3Metrics::register(registry);
        let how = Sockets { shared: doors.reuse_port, workers: doors.workers };
        let proxies: Option<Arc<[_]>> =
            (!doors.proxy_protocol_from.is_empty()).then(|| doors.proxy_protocol_from.as_slice().into());
        let behind = |listener: Listener| match &proxies {
            Some(proxies) => listener.behind(Arc::clone(proxies)),
            None => listener,
        };
        let open = |addr: &SocketAddr| Listener::open(*addr, how).map(behind);
        let mut clear = doors.http.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let Some(https) = &doors.https else {
            return Ok(Self { clear, secure: Vec::new(), tls: None, acme: None });
        };
        let certificates = Certificates::load(https)?;
        let acme = https.acme.as_ref();
        let acme = acme.map(|config| Acme::open(config, Arc::clone(&certificates), registry)).transpose()?;
        if let Some(acme) = &acme {
            clear = clear.into_iter().map(|listener| listener.answering(acme.challenges())).collect();
        }
        let quic = https.http3.then(|| quic_config(Arc::clone(&certificates))).transpose()?;
        let mut secure = Vec::with_capacity(https.addrs.len());
        for addr in &https.addrs {
            let (listener, http3) = match &quic {
                Some(quic) => pair(*addr, how, quic, metrics)?,
                None => (Listener::open(*addr, how)?, None),
            };
            secure.push((behind(listener), http3));
        }
        let config = server_config(Arc::clone(&certificates))?;
        Ok(Self { clear, secure, tls: Some((certificates, config)), acme })
    }

    pub(crate) fn listening(&self) -> Listening {
        let clear = self.clear.iter().map(Listener::addr);
        let secure = self.secure.iter().map(|(listener, _)| listener.addr());
        Listening {
            http: clear.clone().next(),
            https: secure.clone().next(),
            also: clear.skip(1).chain(secure.skip(1)).collect(),
            admin: None,
        }
    }

    /// Lets shoppers in by `gate`, in tasks of `doors`; `helpers` keeps certificates fresh, and gets them.
    pub(crate) fn serve(
        self,
        limits: &ListenLimits,
        gate: &Arc<Gate>,
        answer: Arc<dyn Answer>,
        (doors, helpers): (&TaskTracker, &TaskTracker),
        shutdown: &CancellationToken,
    ) {
        for listener in self.clear {
            let listener = listener.through(Arc::clone(gate));
            doors.spawn(listener.serve(None, limits.clone(), Arc::clone(&answer), shutdown.clone()));
        }
        let Some((certificates, config)) = self.tls else { return };
        for (listener, http3) in self.secure {
            let tls = Some(Arc::clone(&config));
            let listener = listener.through(Arc::clone(gate));
            doors.spawn(listener.serve(tls, limits.clone(), Arc::clone(&answer), shutdown.clone()));
            if let Some(http3) = http3 {
                let http3 = http3.through(Arc::clone(gate));
                doors.spawn(http3.serve(limits.clone(), Arc::clone(&answer), shutdown.clone()));
            }
        }
        helpers.spawn(certificates.keep_fresh(shutdown.clone()));
        if let Some(acme) = self.acme {
            helpers.spawn(acme.run(shutdown.clone()));
        }
    }
}

/// HTTPS and HTTP/3 on one port number.
fn pair(
    addr: SocketAddr,
    how: Sockets,
    quic: &Arc<ServerConfig>,
    metrics: &Http3Metrics,
) -> Result<(Listener, Option<Http3Listener>), RunError> {
    let mut tries = if addr.port() == 0 { ANY_PORT_TRIES } else { 1 };
    loop {
        let listener = Listener::open(addr, how)?;
        let waits = how.shared && addr.port() != 0;
        match Http3Listener::bind(listener.addr(), waits, Arc::clone(quic), metrics.clone()) {
            Ok(http3) => {
                let alt_svc = http3.alt_svc();
                return Ok((listener.announcing(alt_svc), Some(http3)));
            }
            Err(RunError::BindUdp { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && tries > 1 =>
            {
                tries -= 1;
            }
            Err(error) => return Err(error),
        }
    }
}
