//! The example `embedded`, run as it stands: a server inside a program sees what remote clients put.

#[path = "../examples/embedded.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod embedded;

use std::time::Duration;

#[tokio::test]
async fn a_program_with_a_server_in_it_sees_what_a_remote_client_puts() {
    let folder = tempfile::tempdir().unwrap();
    let run = embedded::run(folder.path());
    let run = tokio::time::timeout(Duration::from_secs(60), run);
    let seen = run.await.expect("it ends by itself").unwrap();
    let expected = [
        "cert:sensor put temp/kitchen = 21.5",
        "cert:sensor put temp/cellar = 12.0",
        "read 12.0, at the client's revision: true",
        "the client reads 30",
        "in order: true",
    ];
    assert_eq!(seen, expected);
}
