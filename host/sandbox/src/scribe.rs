//! What one request's plugin calls become in the merchant's journal.
//!
//! The node's and the region's [`crate::SiteData`] hold one per request and pass on what they are told: first the lines
//! that a call logs, then that it has ended. Only then is it known whose lines they were and how it went, so the entries
//! are made together, in order.
//!
//! **No shopper data.** A plugin knows its shopper's customer number and may log it; whoever reads the journal need not
//! know it. The scribe strikes it out of every text. What else a plugin knows (country, language, segments, the products
//! of the cart) names nobody.
//!
//! What this module refuses to know: queues, clocks, and who reads.

use parking_lot::Mutex;
use souk_commerce::id::{NodeId, SiteId};
use souk_commerce::journal::{Entry, Event, Level, Outcome, Source, TEXT_BYTES_MAX, bounded};

use crate::account::{self, Ended};

/// In place of a customer's number.
const STRUCK_OUT: &str = "[customer]";
/// A number that is shorter is struck out only where it stands as a word of its own: "7" is in every other text.
const UNMISTAKABLE_BYTES_MIN: usize = 6;

/// Writes the entries of one request.
#[derive(Debug)]
pub struct Scribe {
    site: SiteId,
    node: Option<NodeId>,
    now_ms: u64,
    customer: Option<String>,
    /// Of the call that is under way. The plugin's log limit bounds them.
    lines: Mutex<Vec<(Level, String)>>,
}

impl Scribe {
    /// `node` is none at the region; `now_ms` is the frozen time of the request; `customer` is what no text may hold.
    pub fn new(site: SiteId, node: Option<NodeId>, now_ms: u64, customer: Option<&str>) -> Self {
        let customer = customer.filter(|customer| !customer.is_empty()).map(str::to_owned);
        Self { site, node, now_ms, customer, lines: Mutex::default() }
    }

    /// The plugin that is being called logs a line. Gives back what may be shown of it.
    pub fn line(&self, level: Level, text: &str) -> String {
        let text = self.strike_out(text);
        self.lines.lock().push((level, text.clone()));
        text
    }

    /// A call has ended: hands its entries to `write`, in the order in which things happened.
    pub fn ended(&self, ended: &Ended<'_>, mut write: impl FnMut(Entry)) {
        let source = Source { plugin: ended.plugin.clone(), release: ended.release, hook: Some(ended.hook) };
        let entry = |event| Entry {
            site: self.site.clone(),
            at_ms: self.now_ms,
            node: self.node,
            source: Some(source.clone()),
            call: ended.call,
            event,
        };
        let lines = std::mem::take(&mut *self.lines.lock());
        for (level, text) in lines {
            write(entry(Event::Log { level, text }));
        }
        let outcome = match ended.outcome {
            account::Outcome::Answered => Outcome::Ok,
            account::Outcome::Refused { code, message } => {
                Outcome::Refused { code: self.strike_out(code), message: self.strike_out(message) }
            }
            account::Outcome::Failed { reason, detail } => {
                // A call that its breaker did not let begin has nothing to tell but that.
                if ended.call.is_some() {
                    let detail = self.strike_out(detail);
                    write(entry(Event::Fault { fault: reason.to_owned(), detail }));
                }
                Outcome::Failed { fault: reason.to_owned() }
            }
        };
        let duration_us = account::micros(ended.duration);
        write(entry(Event::Call { duration_us, outcome }).within_limits());
    }

    fn strike_out(&self, text: &str) -> String {
        let struck = match &self.customer {
            Some(customer) if text.contains(customer.as_str()) => strike_out(text, customer),
            _ => text.to_owned(),
        };
        bounded(struck, TEXT_BYTES_MAX)
    }
}

fn strike_out(text: &str, customer: &str) -> String {
    if customer.len() >= UNMISTAKABLE_BYTES_MIN {
        return text.replace(customer, STRUCK_OUT);
    }
    let mut struck = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(customer) {
        let (before, found) = rest.split_at(at);
        let after = &found[customer.len()..];
        struck.push_str(before);
        let joined = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let alone = !joined(struck.chars().next_back()) && !joined(after.chars().next());
        struck.push_str(if alone { STRUCK_OUT } else { customer });
        rest = after;
    }
    struck.push_str(rest);
    struck
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use souk_commerce::id::{Digest, PluginName};
    use souk_commerce::journal::CallIds;
    use souk_commerce::site::Hook;

    use super::*;

    fn entries(scribe: &Scribe, began: bool, outcome: account::Outcome<'_>) -> Vec<Entry> {
        let plugin: PluginName = "pricing".parse().expect("a plugin");
        let mut entries = Vec::new();
        let ended = Ended {
            call: began.then(|| CallIds::new(1).next(5)),
            plugin: &plugin,
            release: 3,
            component: Digest::of(b"x"),
            hook: Hook::Pricing,
            duration: Duration::from_micros(40),
            host_calls: 1,
            outcome,
        };
        scribe.ended(&ended, |entry| entries.push(entry));
        entries
    }

    fn scribe(customer: Option<&str>) -> Scribe {
        Scribe::new("shop".parse().expect("a site"), Some(NodeId(1)), 5, customer)
    }

    #[test]
    fn a_call_is_written_with_its_lines_its_fault_and_its_outcome_in_order() {
        let scribe = scribe(None);
        scribe.line(Level::Info, "one");
        scribe.line(Level::Warn, "two");
        let failed = account::Outcome::Failed { reason: "trap", detail: "unreachable" };
        let events: Vec<Event> = entries(&scribe, true, failed).into_iter().map(|e| e.event).collect();
        let trap = || "trap".to_owned();
        assert_eq!(
            events,
            [
                Event::Log { level: Level::Info, text: "one".to_owned() },
                Event::Log { level: Level::Warn, text: "two".to_owned() },
                Event::Fault { fault: trap(), detail: "unreachable".to_owned() },
                Event::Call { duration_us: 40, outcome: Outcome::Failed { fault: trap() } },
            ]
        );
        let next = entries(&scribe, true, account::Outcome::Answered);
        assert_eq!(next.len(), 1, "the lines are those of the call that logged them");
        assert_eq!(next[0].event, Event::Call { duration_us: 40, outcome: Outcome::Ok });
        assert!(next[0].call.is_some());
        let open = account::Outcome::Failed { reason: "breaker_open", detail: "…" };
        assert_eq!(entries(&scribe, false, open).len(), 1);
    }

    #[test]
    fn the_customer_is_in_no_text() {
        let scribe = scribe(Some("cust-4711"));
        scribe.line(Level::Info, "hello cust-4711, xcust-4711x");
        let said = account::Outcome::Refused { code: "cust-4711", message: "not for cust-4711" };
        let written = format!("{:?}", entries(&scribe, true, said));
        assert!(!written.contains("4711"), "{written}");
        assert!(written.contains("hello [customer], x[customer]x") && written.contains("not for [customer]"));
        let trap = account::Outcome::Failed { reason: "trap", detail: "panic at cust-4711" };
        assert!(!format!("{:?}", entries(&scribe, true, trap)).contains("4711"));
    }

    #[test]
    fn a_short_customer_number_is_struck_out_as_a_word_only() {
        assert_eq!(strike_out("7 of 17, 7.", "7"), "[customer] of 17, [customer].");
        assert_eq!(strike_out("77", "7"), "77");
        assert_eq!(strike_out("é7 7é -7-", "7"), "é7 7é -[customer]-");
    }

    #[test]
    fn what_is_struck_out_stays_within_an_entry() {
        let scribe = scribe(Some("abcdef"));
        scribe.line(Level::Info, &"abcdef".repeat(170));
        for entry in entries(&scribe, true, account::Outcome::Answered) {
            assert!(entry.to_bytes().len() <= souk_commerce::journal::ENTRY_BYTES_MAX);
        }
    }
}
