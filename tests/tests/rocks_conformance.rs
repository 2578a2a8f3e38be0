//! The RocksDB engine keeps the promises of the contract.

use std::sync::Arc;

use storage_tests::RocksFixture;
use storage_tests::conformance::{self, Fixture, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rocksdb_engine_keeps_every_promise() {
    let make = || -> futures_util::future::BoxFuture<'static, Arc<dyn Fixture>> {
        Box::pin(async { RocksFixture::new() as Arc<dyn Fixture> })
    };
    let report = conformance::run_with(make, &Options::from_env()).await;
    conformance::print_table(&[("rocksdb", report.clone())]);
    report.assert_ok();
}
