//! One contract, three implementations: the model, the RocksDB engine, the remote client over mutual TLS. The table
//! sets them side by side.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use storage_testkit::conformance::{self, Fixture, ModelFixture, Options};
use storage_testkit::{RemoteFixture, RocksFixture};

type Make = fn() -> BoxFuture<'static, Arc<dyn Fixture>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_the_engine_and_the_remote_client_keep_every_promise() {
    let implementations: [(&str, Make); 3] = [
        ("model", || {
            Box::pin(async { ModelFixture::new() as Arc<dyn Fixture> })
        }),
        ("rocksdb", || {
            Box::pin(async { RocksFixture::new() as Arc<dyn Fixture> })
        }),
        ("remote over mTLS", || {
            Box::pin(async { RemoteFixture::new() as Arc<dyn Fixture> })
        }),
    ];
    let options = Options::from_env();
    let mut reports = Vec::new();
    for (name, make) in implementations {
        reports.push((name, conformance::run_with(make, &options).await));
    }
    conformance::print_table(&reports);
    for (_, report) in &reports {
        report.assert_ok();
    }
}
