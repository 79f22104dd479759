//! An event as it leaves the house: a CloudEvent 1.0 in JSON. Pure.
//!
//! What is in it is named here field by field, so that nothing gets out because something was added to a row: neither the
//! shopper nor his cart, whose number is the cart. `docs/EVENTS.md` promises the form to those who read it.

use bytes::Bytes;
use serde::Serialize;
use souk_commerce::id::{OrderId, SiteId};
use time::OffsetDateTime;

use crate::store::event::EventRow;

/// The first word of every subject.
pub(super) const SUBJECT: &str = "souk";
/// Of a message.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What a broker is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) seq: u64,
    pub(crate) order: OrderId,
    /// By which whoever gets it twice knows it.
    pub(crate) id: String,
    /// `souk.REGION.SITE.KIND`, of which the kind has two words: what a listener may pick events by.
    pub(crate) subject: String,
    pub(crate) body: Bytes,
}

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    r#type: String,
    subject: String,
    time: String,
    datacontenttype: &'static str,
    /// An extension that CloudEvents documents: texts that compare as the numbers do.
    sequence: String,
    data: Data<'a>,
}

/// The order as it was then.
#[derive(Serialize)]
struct Data<'a> {
    order: String,
    /// None only of a row that somebody broke.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<&'a str>,
    /// In minor units of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<i64>,
}

impl Message {
    pub(super) fn of(region: &str, site: &SiteId, event: &EventRow) -> Self {
        let order = event.order.to_string();
        let cloud_event = CloudEvent {
            specversion: "1.0",
            id: &event.id,
            source: format!("/souk/regions/{region}/sites/{site}"),
            r#type: format!("souk.{}", event.kind),
            subject: order.clone(),
            time: rfc3339(event.at_ms),
            datacontenttype: "application/json",
            sequence: format!("{:020}", event.seq),
            data: Data {
                order,
                state: event.detail["state"].as_str(),
                currency: event.detail["currency"].as_str(),
                total: event.detail["total"].as_i64(),
            },
        };
        let body = serde_json::to_vec(&cloud_event).expect("texts and numbers are JSON");
        Self {
            seq: event.seq,
            order: event.order,
            id: event.id.clone(),
            subject: format!("{SUBJECT}.{region}.{site}.{}", event.kind),
            body: body.into(),
        }
    }
}

/// The number of the event that an id is of.
pub(super) fn seq_of(id: &str) -> Option<u64> {
    id.split_once('-')?.0.parse().ok()
}

fn rfc3339(at_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Programs that we do not know read it.
    #[test]
    fn the_form_of_an_event_stays_what_it_is() {
        let event = EventRow {
            seq: 42,
            id: "42-1e135c35d3b5a811".to_owned(),
            at_ms: 1_700_000_000_123,
            order: OrderId([1; 16]),
            kind: "order.placed".to_owned(),
            detail: json!({
                "cart": "0202", "state": "placed", "currency": "GBP", "total": 1_250, "customer": "Ada", "email": "a@b",
            }),
        };
        let site: SiteId = "shop".parse().unwrap();
        let message = Message::of("eu-west", &site, &event);
        assert_eq!(message.subject, "souk.eu-west.shop.order.placed");
        assert_eq!((message.id.as_str(), seq_of(&message.id)), ("42-1e135c35d3b5a811", Some(42)));
        let expected = concat!(
            r#"{"specversion":"1.0","id":"42-1e135c35d3b5a811","source":"/souk/regions/eu-west/sites/shop","#,
            r#""type":"souk.order.placed","subject":"01010101010101010101010101010101","#,
            r#""time":"2023-11-14T22:13:20.123Z","datacontenttype":"application/json","#,
            r#""sequence":"00000000000000000042","data":{"order":"01010101010101010101010101010101","#,
            r#""state":"placed","currency":"GBP","total":1250}}"#
        );
        assert_eq!(message.body, expected);
    }

    #[test]
    fn ids_of_others_are_none_of_ours() {
        for id in ["", "-", "x-1", "42", "-42-1"] {
            assert_eq!(seq_of(id), None, "{id:?}");
        }
    }
}
