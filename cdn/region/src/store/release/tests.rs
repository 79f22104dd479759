//! A merchant's releases, step by step: what is active, what stands by, and who vouches for it.

use std::sync::Arc;

use souk_commerce::seal::SealKey;
use souk_commerce::site::{Hook, SiteSettings};
use souk_sandbox::admit::Capabilities;

use super::super::push::{PUSHED_BYTES_MAX, PushRow, PutPush};
use super::super::site::By;
use super::super::tests::home::{Home, on_every_engine};
use super::super::{Store, StoreSettings};
use super::*;

on_every_engine! {
    forward_and_back_step_by_step,
    what_a_deploy_does_not_name_stays_and_what_cannot_be_leaves_nothing,
    every_release_is_sealed_and_a_new_key_seals_what_is_active,
    what_was_left_for_a_reason_never_stands_by_again,
    a_set_of_a_version_without_seals_gets_its_standby,
    a_site_that_keeps_as_much_as_it_may_is_told_so_beforehand,
    two_spellings_of_a_route_are_one_route,
    what_is_pushed_is_announced_until_it_is_deployed,
    a_chain_that_is_put_whole_keeps_what_it_does_not_name_and_refuses_what_it_cannot_take,
    to_take_a_plugin_out_twice_is_as_good_as_once,
    every_site_has_a_set_from_its_first_day_and_one_that_was_left_without_gets_one,
    a_restored_region_numbers_every_set_above_what_it_knows,
    a_change_of_the_chain_comes_before_news_of_what_is_to_come,
    what_stands_by_and_is_pushed_again_is_announced,
    settings_may_hold_any_character,
}

struct World {
    home: Home,
    store: Store,
}

fn site() -> SiteId {
    "shop".parse().unwrap()
}

fn plugin() -> PluginName {
    "pricing".parse().unwrap()
}

fn actor() -> Actor {
    Actor { name: "test".to_owned(), peer: String::new() }
}

fn open(home: &Home, key: u8) -> Store {
    let seal = Arc::new(SealKey::generate(&[key; 32]));
    home.open_with(StoreSettings { seal, ..StoreSettings::for_tests(1_000) })
}

impl World {
    async fn new(home: Home) -> Self {
        let store = open(&home, 1);
        store
            .put_site(SiteSettings::new(site(), "GBP".parse().unwrap()), By::Operator, actor())
            .await
            .unwrap();
        Self { home, store }
    }

    async fn push(&self, component: u8) -> Digest {
        let digest = Digest([component; 32]);
        let capabilities = Capabilities { hooks: vec![Hook::Pricing], ..Capabilities::default() };
        let row = PushRow { component: digest, capabilities, pushed_ms: 0, bytes: 10 };
        self.store.put_push(site(), plugin(), row, actor()).await.unwrap();
        digest
    }

    async fn change(&self, wanted: Wanted) -> Result<Changed, Stays> {
        let change = Change { plugin: plugin(), wanted, position: None };
        self.store.change_plugin(site(), change, actor()).await.unwrap()
    }

    async fn deploy(&self) -> Changed {
        self.change(Wanted::New(Box::default())).await.unwrap()
    }

    /// Numbers of what is active and of what stands by.
    async fn now(&self) -> (Option<u32>, Option<u32>) {
        let set = self.store.releases(site()).await.unwrap();
        (set.releases.first().map(|r| r.number), set.standby.first().map(|r| r.number))
    }
}

async fn forward_and_back_step_by_step(home: Home) {
    let world = World::new(home).await;
    assert_eq!(world.change(Wanted::New(Box::default())).await, Err(Stays::NothingPushed));
    world.push(1).await;
    assert_eq!(world.deploy().await.after, Some(1));
    assert!(!world.deploy().await.changed, "the same again is the same release");
    world.push(2).await;
    world.deploy().await;
    world.push(3).await;
    world.deploy().await;
    assert_eq!(world.now().await, (Some(3), Some(2)));

    let back = |from, to| world.change(Wanted::Before { from: Some(from), to });
    assert_eq!(back(3, Some(2)).await.unwrap().after, Some(2));
    // What was left was left for a reason: it does not stand by.
    assert_eq!(world.now().await, (Some(2), Some(1)));
    assert!(!back(3, Some(2)).await.unwrap().changed, "a call that is repeated does not go back twice");
    assert_eq!(back(3, None).await, Err(Stays::Moved { active: 2, from: 3 }));
    assert_eq!(back(2, None).await.unwrap().after, Some(1));
    assert_eq!(world.now().await, (Some(1), None));
    assert_eq!(back(1, None).await.unwrap().after, None, "before the first release there was none");
    assert_eq!(world.now().await, (None, None));
    assert_eq!(back(1, None).await, Err(Stays::NotActive));
    assert_eq!(world.change(Wanted::Number(3)).await.unwrap().after, Some(3));
    assert_eq!(world.change(Wanted::Number(9)).await, Err(Stays::NoRelease(9)));
}

async fn what_a_deploy_does_not_name_stays_and_what_cannot_be_leaves_nothing(home: Home) {
    let world = World::new(home).await;
    let first = world.push(1).await;
    let settings = serde_json::json!({ "rate": 0.1 });
    let changes = Changes {
        settings: Some(settings.clone()),
        on_fault: Some(OnFault::Closed),
        record_bp: Some(7),
        ..Changes::default()
    };
    world.change(Wanted::New(Box::new(changes))).await.unwrap();
    world.push(2).await;
    let set = world.deploy().await.set;
    let release = &set.releases[0];
    assert_eq!((release.number, &release.settings, release.record_bp), (2, &settings, 7));
    assert_eq!(release.on_fault, OnFault::Closed);
    assert_ne!(release.component, first);
    let heads = *world.store.log_heads().borrow();
    let route = Changes { route: Some("/x".to_owned()), ..Changes::default() };
    assert!(matches!(world.change(Wanted::New(Box::new(route))).await, Err(Stays::Invalid(_))));
    let foreign = Changes { component: Some(Digest([9; 32])), ..Changes::default() };
    let refused = world.change(Wanted::New(Box::new(foreign))).await;
    assert_eq!(refused, Err(Stays::NotPushed(Digest([9; 32]))));
    assert_eq!(*world.store.log_heads().borrow(), heads, "no node hears of what was refused");
    assert_eq!(world.store.releases_of(site(), plugin()).await.unwrap().len(), 2);
}

async fn every_release_is_sealed_and_a_new_key_seals_what_is_active(home: Home) {
    let world = World::new(home).await;
    world.push(1).await;
    world.deploy().await;
    world.push(2).await;
    let set = world.deploy().await.set;
    let (old, new) = (SealKey::generate(&[1; 32]), SealKey::generate(&[2; 32]));
    for release in set.releases.iter().chain(&set.standby) {
        assert_eq!(old.trusted().verify(&site(), release), Ok(()));
    }
    assert_eq!(world.store.seal_chains(actor()).await.unwrap(), 0);
    world.store.close();
    let store = open(&world.home, 2);
    assert_eq!(store.seal_chains(actor()).await.unwrap(), 1);
    let sealed = store.releases(site()).await.unwrap();
    assert!(sealed.version > set.version, "nodes hear of it");
    for release in sealed.releases.iter().chain(&sealed.standby) {
        assert_eq!(new.trusted().verify(&site(), release), Ok(()));
    }
    assert_eq!(store.seal_chains(actor()).await.unwrap(), 0);
}

async fn what_was_left_for_a_reason_never_stands_by_again(home: Home) {
    let world = World::new(home).await;
    for component in [1, 2] {
        world.push(component).await;
        world.deploy().await;
    }
    let back = |from| world.change(Wanted::Before { from: Some(from), to: None });
    back(2).await.unwrap();
    for component in [3, 4] {
        world.push(component).await;
        world.deploy().await;
    }
    assert_eq!(world.now().await, (Some(4), Some(3)));
    back(4).await.unwrap();
    assert_eq!(world.now().await, (Some(3), Some(1)), "2 was left before 3 was made");
    back(3).await.unwrap();
    assert_eq!(world.now().await, (Some(1), None));
    let again = Changes { component: Some(Digest([3; 32])), ..Changes::default() };
    let again = world.change(Wanted::New(Box::new(again))).await.unwrap();
    assert_eq!(again.after, Some(3), "the same again has the number that it had");
}

async fn a_set_of_a_version_without_seals_gets_its_standby(home: Home) {
    let world = World::new(home).await;
    for component in [1, 2] {
        world.push(component).await;
        world.deploy().await;
    }
    let set = world.store.releases(site()).await.unwrap();
    let unsealed = Release { seal: None, ..set.releases[0].clone() };
    let old = ReleaseSet { releases: vec![unsealed], standby: Vec::new(), ..set };
    let undone = world.store.write(move |tx| {
        let json = String::from_utf8(old.to_bytes()).unwrap();
        tx.sql.execute("UPDATE release_set SET body = ?1", params![json])?;
        tx.sql.execute("UPDATE release SET content = NULL, follows = NULL", &[])?;
        Ok(Decision::Keep(()))
    });
    undone.await.unwrap();
    assert_eq!(world.store.seal_chains(actor()).await.unwrap(), 1);
    assert_eq!(world.now().await, (Some(2), Some(1)));
    assert!(!world.deploy().await.changed, "the releases of the older version are found");
    let back = world.change(Wanted::Before { from: Some(2), to: None }).await.unwrap();
    assert_eq!(back.after, Some(1), "a roll-back does not take the plugin out of the chain");
}

async fn a_site_that_keeps_as_much_as_it_may_is_told_so_beforehand(home: Home) {
    let world = World::new(home).await;
    let first = Digest([1; 32]);
    let row = PushRow {
        component: first,
        capabilities: Capabilities::default(),
        pushed_ms: 0,
        bytes: PUSHED_BYTES_MAX,
    };
    world.store.put_push(site(), plugin(), row.clone(), actor()).await.unwrap();
    let full = PutPush::Full { bytes: row.bytes, pushes: 1 };
    let more = PushRow { component: Digest([2; 32]), bytes: 1, ..row };
    assert_eq!(world.store.may_push(site(), plugin(), more.component, 1).await.unwrap(), full);
    assert_eq!(world.store.put_push(site(), plugin(), more, actor()).await.unwrap(), full);
    let again = world.store.may_push(site(), plugin(), first, 1).await.unwrap();
    assert_eq!(again, PutPush::Kept { created: false });
}

async fn two_spellings_of_a_route_are_one_route(home: Home) {
    let world = World::new(home).await;
    let route = |plugin: &str, route: &str| Link {
        plugin: plugin.parse().unwrap(),
        ..link(Kind::Http, Changes { route: Some(route.to_owned()), ..Changes::default() })
    };
    let links = vec![route("one", "/reviews"), route("two", "/reviews/")];
    let refused = world.store.put_releases(site(), links, actor()).await.unwrap();
    assert!(matches!(refused, Err(Stays::RouteTaken { .. })), "{refused:?}");
    let links = vec![route("one", "/reviews"), route("two", "/reviews/new")];
    assert!(world.store.put_releases(site(), links, actor()).await.unwrap().is_ok());
}

async fn what_is_pushed_is_announced_until_it_is_deployed(home: Home) {
    let world = World::new(home).await;
    let coming = async || world.store.releases(site()).await.unwrap();
    let first = world.push(1).await;
    let announced = coming().await;
    assert!(announced.releases.is_empty() && announced.version > 0);
    let [ahead] = &announced.coming[..] else { panic!("{announced:?}") };
    assert_eq!((ahead.component, ahead.number, ahead.hooks.as_slice()), (first, 0, &[Hook::Pricing][..]));
    SealKey::generate(&[1; 32]).trusted().verify(&site(), ahead).unwrap();
    assert_eq!(world.push(1).await, first);
    assert_eq!(coming().await, announced, "it is known already");

    world.deploy().await;
    assert!(coming().await.coming.is_empty(), "it is in the chain");
    world.push(2).await;
    let third = world.push(3).await;
    let set = coming().await;
    assert_eq!(set.coming.iter().map(|r| r.component).collect::<Vec<_>>(), [third], "the newest of a plugin");
    assert_eq!(set.releases.len(), 1, "the chain is as it was");
    world.push(1).await;
    assert_eq!(coming().await, set, "what is in the chain needs no announcement");
}

fn link(kind: Kind, changes: Changes) -> Link {
    let hooks = if kind == Kind::Hooks { vec![Hook::Pricing] } else { Vec::new() };
    Link { plugin: plugin(), component: Digest([1; 32]), kind, hooks, changes }
}

async fn a_chain_that_is_put_whole_keeps_what_it_does_not_name_and_refuses_what_it_cannot_take(home: Home) {
    let world = World::new(home).await;
    let put = async |kind: Kind, changes: Changes| {
        let put = world.store.put_releases(site(), vec![link(kind, changes)], actor()).await.unwrap();
        put.map(|set| set.releases[0].clone())
    };
    let hosts = |host: &str| Grants { hosts: vec![host.to_owned()], ..Grants::default() };
    let whole = Changes {
        settings: Some(serde_json::json!({ "a": 1 })),
        on_fault: Some(OnFault::Closed),
        grants: Some(hosts("api.example.com")),
        route: Some("/reviews".to_owned()),
        reuse: Some(5),
        record_bp: Some(10_000),
        ..Changes::default()
    };
    let first = put(Kind::Http, whole).await.unwrap();
    assert_eq!((first.kind, first.route.as_deref(), first.reuse), (Kind::Http, Some("/reviews"), 5));
    assert_eq!((&first.grants, first.record_bp), (&hosts("api.example.com"), 10_000));
    assert_eq!(
        put(Kind::Http, Changes::default()).await,
        Ok(first.clone()),
        "nothing is named: nothing changes"
    );
    let second = put(Kind::Http, Changes { reuse: Some(6), ..Changes::default() }).await.unwrap();
    assert_eq!(second, Release { number: 2, reuse: 6, seal: second.seal.clone(), ..first });

    let wrong = async |kind: Kind, changes: Changes| match put(kind, changes).await {
        Err(Stays::InvalidLink { index: 0, why }) => why.field(),
        other => panic!("{other:?}"),
    };
    let record = |record_bp: u16| Changes { record_bp: Some(record_bp), ..Changes::default() };
    assert_eq!(wrong(Kind::Http, record(10_001)).await, "record_bp", "refused and not clamped");
    let route = |route: &str| Changes { route: Some(route.to_owned()), ..Changes::default() };
    assert_eq!(wrong(Kind::Http, route("/api/x")).await, "route");
    assert_eq!(wrong(Kind::Hooks, route("/reviews")).await, "route", "hooks have no route");
    let grants = Changes { grants: Some(hosts("10.0.0.1")), ..Changes::default() };
    assert_eq!(wrong(Kind::Http, grants).await, "grants");
    assert_eq!(wrong(Kind::Http, Changes { reuse: Some(10_001), ..Changes::default() }).await, "reuse");
    let large = Changes { settings: Some("x".repeat(65 << 10).into()), ..Changes::default() };
    assert_eq!(wrong(Kind::Http, large).await, "settings");

    // What another kind was granted is not handed on.
    let hooks = put(Kind::Hooks, record(1)).await.unwrap();
    assert_eq!((hooks.route, hooks.grants, hooks.reuse), (None, Grants::default(), 0));
}

async fn to_take_a_plugin_out_twice_is_as_good_as_once(home: Home) {
    let world = World::new(home).await;
    assert_eq!(world.change(Wanted::Nothing).await, Err(Stays::NotActive), "there never was such a plugin");
    world.push(1).await;
    world.deploy().await;
    let out = world.change(Wanted::Nothing).await.unwrap();
    assert_eq!((out.before, out.after, out.changed), (Some(1), None, true));
    let again = world.change(Wanted::Nothing).await.unwrap();
    assert_eq!((again.before, again.after, again.changed), (None, None, false));
    assert_eq!(again.set, out.set);
}

async fn every_site_has_a_set_from_its_first_day_and_one_that_was_left_without_gets_one(home: Home) {
    let world = World::new(home).await;
    let first = world.store.releases(site()).await.unwrap();
    assert_eq!((first.version, first.releases.len()), (1, 0));
    SealKey::generate(&[1; 32]).trusted().verify_set(&first).unwrap();
    let mut settings = SiteSettings::new(site(), "GBP".parse().unwrap());
    settings.hosts = vec!["shop.example".to_owned()];
    world.store.put_site(settings, By::Operator, actor()).await.unwrap();
    assert_eq!(world.store.releases(site()).await.unwrap(), first, "other settings are no news of plugins");

    // As an older version, or a backup of its database, left it.
    let undone = world.store.write(|tx| {
        tx.sql.execute("DELETE FROM release_set", &[])?;
        Ok(Decision::Keep(()))
    });
    undone.await.unwrap();
    assert_eq!(world.store.seal_chains(actor()).await.unwrap(), 1);
    let again = world.store.releases(site()).await.unwrap();
    assert_eq!((again.version, again.seal.is_some()), (2, true));
    assert_eq!(world.store.seal_chains(actor()).await.unwrap(), 0);
}

async fn a_restored_region_numbers_every_set_above_what_it_knows(home: Home) {
    let world = World::new(home).await;
    let bare: SiteId = "bare".parse().unwrap();
    world
        .store
        .put_site(SiteSettings::new(bare.clone(), "GBP".parse().unwrap()), By::Operator, actor())
        .await
        .unwrap();
    world.push(1).await;
    world.deploy().await;
    world.push(2).await;
    let undone = world.store.write(|tx| {
        tx.sql.execute("DELETE FROM release_set WHERE site = 'bare'", &[])?;
        Ok(Decision::Keep(()))
    });
    undone.await.unwrap();
    let before = world.store.releases(site()).await.unwrap();
    assert_eq!(world.store.renumber_sets().await.unwrap(), 2);
    let after = world.store.releases(site()).await.unwrap();
    assert!(after.version > before.version && after.number > before.number, "{after:?}");
    assert_eq!((&after.releases, &after.coming), (&before.releases, &before.coming));
    let trusted = SealKey::generate(&[1; 32]).trusted();
    trusted.verify_set(&after).unwrap();
    let empty = world.store.releases(bare).await.unwrap();
    trusted.verify_set(&empty).unwrap();
    assert!(empty.version > 0 && empty.releases.is_empty());
}

async fn a_change_of_the_chain_comes_before_news_of_what_is_to_come(home: Home) {
    let world = World::new(home).await;
    let full = world.store.write(|tx| {
        let mut set = active(tx.sql, &site())?;
        let mut ahead = Draft {
            plugin: plugin(),
            component: Digest([9; 32]),
            kind: Kind::Hooks,
            hooks: vec![Hook::Pricing],
            settings: serde_json::Value::Null,
            on_fault: OnFault::default(),
            grants: Grants::default(),
            route: None,
            reuse: 0,
            record_bp: 0,
        }
        .numbered(0);
        tx.settings.seal.seal(&site(), &mut ahead);
        set.coming.push(ahead);
        // Room for the set's longer numbers, and not for a release.
        let room = SETTINGS_BYTES_MAX - set.to_bytes().len() - 100;
        set.coming[0].settings = serde_json::Value::String("x".repeat(room));
        Ok(Decision::Keep(publish(tx, set)?.is_ok()))
    });
    assert!(full.await.unwrap(), "the news just fits");
    // A release of half a kilobyte does not, beside it.
    let deployed =
        world.store.put_releases(site(), vec![link(Kind::Hooks, Changes::default())], actor()).await;
    let set = deployed.unwrap().expect("the chain is changed");
    assert_eq!((set.releases.len(), set.coming.len()), (1, 0), "the nodes compile it when it is deployed");
}

async fn what_stands_by_and_is_pushed_again_is_announced(home: Home) {
    let world = World::new(home).await;
    let first = world.push(1).await;
    world.deploy().await;
    world.push(2).await;
    world.deploy().await;
    assert_eq!(world.now().await, (Some(2), Some(1)));
    world.push(1).await;
    let set = world.store.releases(site()).await.unwrap();
    assert_eq!(set.coming.iter().map(|r| r.component).collect::<Vec<_>>(), [first]);
}

async fn settings_may_hold_any_character(home: Home) {
    let world = World::new(home).await;
    world.push(1).await;
    // The character 0, a text that only looks like it, and what is called like a column of ours.
    let settings = serde_json::json!({ "a\0": "x\0y", "b": "\\u0000", "component": "none" });
    let changes = || Changes { settings: Some(settings.clone()), ..Changes::default() };
    world.change(Wanted::New(Box::new(changes()))).await.unwrap();
    let set = world.store.releases(site()).await.unwrap();
    assert_eq!(set.releases[0].settings, settings);
    assert!(!world.change(Wanted::New(Box::new(changes()))).await.unwrap().changed, "it is found again");
    let stale = world.store.stale_pushes(crate::clock::now_ms() + 1).await.unwrap();
    assert_eq!(stale, [], "the component of the release is read from its row");
}
