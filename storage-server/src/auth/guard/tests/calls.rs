//! Single calls, where the model has no word for it: what is counted, and who was let in before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use storage_protocol::{Batch, CommitOptions, Keyspace, Limit, StorageError, StorageExt};

use crate::audit::Audit;
use crate::auth::quotas::Quota;
use crate::auth::{Configured, Identity, Principal, Proof};
use crate::config::ServerConfig;
use crate::engine::Resumed;
use crate::shared::Shared;
use crate::testing::{KEYSPACE, MemoryEngine, server};

fn limited(engine: &Arc<MemoryEngine>, quota: &str) -> Arc<Shared> {
    let configured = Configured {
        quotas: vec![Quota::from_json(quota.as_bytes()).unwrap()],
        ..Configured::default()
    };
    let config = ServerConfig::embedded("unused", None, Vec::new());
    Shared::new(config, |_| {}, configured, engine.clone(), Audit::off()).unwrap()
}

#[tokio::test]
async fn a_commit_that_comes_again_is_counted_once_and_the_servers_own_are_not() {
    let engine = MemoryEngine::new();
    let quota = r#"{"principal":"anonymous","commits_per_second":1}"#;
    let shared = limited(&engine, quota);
    let (peer, keyspace) = (Identity::anonymous(), Keyspace::new(KEYSPACE).unwrap());
    let id = shared.open_session(&peer, &keyspace).id();
    engine.executed.store(5, Ordering::Relaxed);
    let resumed = shared.resume_session(&peer, &keyspace, id, 1).await;
    let Ok(Resumed::Session(session)) = resumed else {
        panic!("{resumed:?}");
    };
    let storage = session.storage();
    let commit = |number| {
        let batch = Batch::new().put("k", "v");
        storage.commit_numbered(number, batch, CommitOptions::default())
    };
    let refused = StorageError::Overloaded {
        limit: Limit::CommitRate,
        max: 1,
    };
    commit(6).await.unwrap();
    assert_eq!(commit(7).await, Err(refused.clone()));
    // These were executed before.
    for number in 1..=5 {
        assert_ne!(commit(number).await, Err(refused.clone()));
    }
    let own = shared.own_session(&keyspace).storage();
    for n in 0..10 {
        own.put(format!("own/{n}").into(), "v".into())
            .await
            .unwrap();
    }
}

/// A request that was in flight when the list changed opens its session behind that.
#[tokio::test]
async fn who_was_verified_before_a_change_does_nothing_behind_it_unless_it_is_good_still() {
    let shared = server(&MemoryEngine::new(), |_| {});
    let keyspace = Keyspace::new(KEYSPACE).unwrap();
    let proof = Proof::Certificate {
        chain: Vec::new(),
        until: u64::MAX,
        verified: AtomicU64::new(shared.access.verifier_version()),
    };
    let peer = Identity::new(Principal::stored("cert:a"), proof);
    let before = shared.open_session(&peer, &keyspace).storage();
    before.put("k".into(), "1".into()).await.unwrap();
    // Nothing vouches for certificates any more.
    shared.access.set_verifier(None);
    let behind = shared.open_session(&peer, &keyspace).storage();
    for storage in [before, behind] {
        let error = storage.put("k".into(), "2".into()).await.unwrap_err();
        assert!(error.to_string().contains("certificate revoked"), "{error}");
    }
}
