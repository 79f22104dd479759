//! What an HTTP plugin prints and how its requests end, as entries.
//!
//! Other than a hook's log this is not cleared of shoppers: an HTTP plugin is given the whole request, and what in it
//! names a person only its author knows.

use std::time::Duration;

use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::journal::{
    CallId, CallIds, Entry, Event, Level, Outcome, Source, TEXT_BYTES_MAX, bounded,
};
use souk_sandbox::http::{HttpFault, Printed, Stream};

use super::Journal;
use crate::http::now_ms;

/// The pen of one HTTP release. With instances that are used again, nobody knows for which of several requests a line
/// was printed: lines name the release, and ends of requests name the request.
#[derive(Debug)]
pub struct Prints {
    journal: Journal,
    site: SiteId,
    source: Source,
    ids: CallIds,
}

impl Journal {
    pub fn prints(&self, site: &SiteId, plugin: &PluginName, release: u32) -> Prints {
        Prints {
            journal: self.clone(),
            site: site.clone(),
            source: Source { plugin: plugin.clone(), release, hook: None },
            ids: CallIds::new(rand::random()),
        }
    }
}

impl Prints {
    /// A request has its head, or will never have one.
    pub fn answered(&self, took: Duration, fault: Option<&HttpFault>) {
        let call = Some(self.ids.next(now_ms()));
        let outcome = match fault {
            None => Outcome::Ok,
            Some(fault) => {
                self.fault(fault, call);
                Outcome::Failed { fault: fault.name().to_owned() }
            }
        };
        let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.write(call, Event::Call { duration_us, outcome });
    }

    /// An answer broke off after its head.
    pub fn broke_off(&self, fault: &HttpFault) {
        self.fault(fault, None);
    }

    fn fault(&self, fault: &HttpFault, call: Option<CallId>) {
        let detail = bounded(fault.to_string(), TEXT_BYTES_MAX);
        self.write(call, Event::Fault { fault: fault.name().to_owned(), detail });
    }

    fn log(&self, level: Level, text: &str) {
        self.write(None, Event::Log { level, text: bounded(text.to_owned(), TEXT_BYTES_MAX) });
    }

    fn write(&self, call: Option<CallId>, event: Event) {
        self.journal.write(Entry {
            site: self.site.clone(),
            at_ms: now_ms(),
            node: Some(self.journal.node()),
            source: Some(self.source.clone()),
            call,
            event,
        });
    }
}

impl Printed for Prints {
    fn line(&self, stream: Stream, text: &str) {
        self.log(
            match stream {
                Stream::Stdout => Level::Info,
                Stream::Stderr => Level::Warn,
            },
            text,
        );
    }

    fn dropped(&self, stream: Stream) {
        let text =
            format!("more was printed to {} than one request may; the rest is not here", stream.name());
        self.log(Level::Warn, &text);
    }
}
