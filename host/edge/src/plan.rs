//! What a site's settings say of its share of this machine, kept in step with the settings as they arrive.
//!
//! Owns the step from a site's `cpu_weight` to the turns that its plugins get, and what is forgotten of a site that is gone:
//! its weight and its series in the metrics. Refuses to know how turns are given (`souk_sandbox::share`) and who may set a
//! weight (the region). Its task is started by [`crate::node`].

use std::collections::HashMap;
use std::sync::Arc;

use souk_commerce::id::SiteId;
use souk_commerce::site::CPU_WEIGHT_MAX;
use souk_replication::Log;
use souk_sandbox::{Share, ShareMetrics};
use tokio_util::sync::CancellationToken;

use crate::state::Replica;
use crate::state::world::World;

/// Follows the settings until the node ends.
pub(crate) async fn keep(
    replica: Arc<Replica>,
    share: Share,
    metrics: ShareMetrics,
    shutdown: CancellationToken,
) {
    let mut changed = replica.changed();
    let mut weights = Weights::default();
    let mut seen = None;
    loop {
        changed.mark_unchanged();
        let world = replica.world();
        // Prices and stock arrive all the time, settings now and then.
        let settings = Some((world.histories.clone(), world.cursors.get(Log::Config)));
        if seen != settings {
            seen = settings;
            for change in weights.follow(&world) {
                match change {
                    Change::Weighs(site, weight) => share.weigh(&site, weight),
                    Change::Gone(site) => {
                        share.weigh(&site, 1);
                        metrics.forget(&site);
                    }
                }
            }
        }
        drop(world);
        match shutdown.run_until_cancelled(changed.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// The weights that the turns are given by.
#[derive(Debug, Default)]
struct Weights(HashMap<SiteId, u32>);

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Weighs(SiteId, u32),
    /// It has no settings any more.
    Gone(SiteId),
}

impl Weights {
    /// What is other than it was. Every site weighs 1 before anybody says otherwise.
    fn follow(&mut self, world: &World) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut now = HashMap::with_capacity(self.0.len());
        for site in world.sites() {
            let Some(settings) = &site.settings else { continue };
            // A region of another release may allow more.
            let weight = settings.cpu_weight().clamp(1, CPU_WEIGHT_MAX);
            if self.0.remove(&site.id).unwrap_or(1) != weight {
                changes.push(Change::Weighs(site.id.clone(), weight));
            }
            now.insert(site.id.clone(), weight);
        }
        changes.extend(std::mem::replace(&mut self.0, now).into_keys().map(Change::Gone));
        changes
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::site::SiteSettings;

    use super::*;
    use crate::state::world::Row;

    #[test]
    fn a_sites_weight_follows_its_settings_and_a_site_that_is_gone_is_forgotten() {
        let id: SiteId = "shop".parse().expect("a site");
        let mut settings = SiteSettings::new(id.clone(), "GBP".parse().expect("a currency"));
        let (mut world, mut weights) = (World::default(), Weights::default());
        let mut put = |world: &mut World, weight: Option<u32>| {
            settings.cpu_weight = weight;
            world.apply(Row::Settings(settings.clone()), 1);
        };
        assert_eq!(weights.follow(&world), []);
        put(&mut world, None);
        assert_eq!(weights.follow(&world), [], "the share that every site has at first");
        put(&mut world, Some(7));
        assert_eq!(weights.follow(&world), [Change::Weighs(id.clone(), 7)]);
        assert_eq!(weights.follow(&world), [], "once");
        put(&mut world, Some(4_000));
        assert_eq!(weights.follow(&world), [Change::Weighs(id.clone(), CPU_WEIGHT_MAX)]);
        put(&mut world, None);
        assert_eq!(weights.follow(&world), [Change::Weighs(id.clone(), 1)]);
        world.clear(Log::Config);
        assert_eq!(weights.follow(&world), [Change::Gone(id)]);
        assert_eq!(weights.follow(&world), []);
    }
}
