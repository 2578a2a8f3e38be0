//! The model is held to its own suite: a case that the model fails is wrong, or the model is.

use std::sync::Arc;

use storage_tests::conformance::{self, Fixture, ModelFixture, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_keeps_every_promise() {
    let make = || -> futures_util::future::BoxFuture<'static, Arc<dyn Fixture>> {
        Box::pin(async { ModelFixture::new() as Arc<dyn Fixture> })
    };
    let report = conformance::run_with(make, &Options::from_env()).await;
    conformance::print_table(&[("model", report.clone())]);
    report.assert_ok();
}
