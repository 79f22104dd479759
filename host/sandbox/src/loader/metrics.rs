//! What the operator sees of loading: compilations by outcome, the queue before them, and the artefacts on the disk.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::confine::Layers;
use crate::artefact::ArtefactMetrics;

/// From a Rust plugin's 10 ms to the longest compilation that is allowed.
const SECONDS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Layer {
    layer: &'static str,
}

/// Register once per process.
#[derive(Clone)]
pub struct LoaderMetrics {
    compilations: Family<Outcome, Counter>,
    seconds: Histogram,
    pub(super) waiting: Gauge,
    layers: Family<Layer, Gauge>,
    uses: Family<Outcome, Counter>,
    bytes: Gauge,
}

impl Default for LoaderMetrics {
    fn default() -> Self {
        Self {
            compilations: Family::default(),
            seconds: Histogram::new(SECONDS),
            waiting: Gauge::default(),
            layers: Family::default(),
            uses: Family::default(),
            bytes: Gauge::default(),
        }
    }
}

impl LoaderMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("souk_compilations", "Compilations by outcome", metrics.compilations.clone());
        registry.register("souk_compilation_seconds", "Wall time of a compilation", metrics.seconds.clone());
        registry.register(
            "souk_compilations_waiting",
            "Components that wait for a compiler",
            metrics.waiting.clone(),
        );
        registry.register(
            "souk_compiler_held_by",
            "1 if this layer of the kernel held the last compiler's child",
            metrics.layers.clone(),
        );
        registry.register("souk_artefacts", "Uses of kept machine code, by outcome", metrics.uses.clone());
        registry.register("souk_artefact_bytes", "Machine code kept on the disk", metrics.bytes.clone());
        metrics
    }

    pub(super) fn compiled(&self, outcome: &'static str, spent: Duration) {
        self.compilations.get_or_create(&Outcome { outcome }).inc();
        self.seconds.observe(spent.as_secs_f64());
    }

    pub(super) fn held_by(&self, layers: Layers) {
        for (layer, held) in [("seccomp", layers.seccomp), ("landlock", layers.landlock)] {
            self.layers.get_or_create(&Layer { layer }).set(i64::from(held));
        }
    }

    pub(super) fn artefacts(&self) -> ArtefactMetrics {
        let counter = |outcome| self.uses.get_or_create(&Outcome { outcome }).clone();
        ArtefactMetrics {
            hits: counter("hit"),
            stored: counter("stored"),
            corrupt: counter("corrupt"),
            unstored: counter("not_stored"),
            evicted: counter("evicted"),
            bytes: self.bytes.clone(),
        }
    }
}
