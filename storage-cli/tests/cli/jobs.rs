//! Jobs: `job add`, `list`, `cancel`, `force`, `follow`, `rm`, and `deliver`. Nobody looks at the clock here: what is to be
//! delivered is forced.

use crate::fake::Server;

#[test]
fn a_job_is_scheduled_listed_forced_delivered_and_followed() {
    let server = Server::start();
    let add = [
        "job", "add", "printer", "page", "--at", "in 1h", "--id", "page-7",
    ];
    let ran = server.run(&add);
    assert_eq!((ran.code, ran.out.as_str()), (0, "page-7\n"), "{}", ran.err);
    // Nobody looks after these jobs, and that is said.
    assert!(ran.err.contains("deliveries.keyspaces"), "{}", ran.err);
    let again = server.run(&add);
    assert_eq!(again.code, 1);
    assert!(
        again.err.contains("there is a job page-7 already"),
        "{}",
        again.err
    );
    let listed = server.run(&["job", "list", "--to", "printer", "--state", "pending"]);
    assert!(
        listed.out.starts_with("page-7\tpending\tprinter\t"),
        "{}",
        listed.out
    );
    assert_eq!(server.run(&["job", "list", "--state", "done"]).out, "");
    let forced = server.run(&["job", "force", "page-7"]);
    assert!(forced.out.starts_with("page-7\tready\t"), "{}", forced.out);
    let delivered = server.run(&["deliver", "printer", "--count", "1"]);
    assert_eq!(
        (delivered.code, delivered.out.as_str()),
        (0, "page\n"),
        "{}",
        delivered.err
    );
    let followed = server.run(&["job", "follow", "page-7"]);
    assert_eq!(followed.code, 0, "{}", followed.err);
    assert!(
        followed.out.starts_with("page-7\tdone\t"),
        "{}",
        followed.out
    );
    let counted = server.run(&["--json", "job", "list", "--count"]);
    assert!(counted.out.contains("\"done\":1"), "{}", counted.out);
    assert_eq!(server.run(&["job", "cancel", "page-7"]).code, 1);
    assert_eq!(server.run(&["job", "rm", "page-7"]).code, 0);
    assert_eq!(server.run(&["job", "follow", "page-7"]).code, 1);
}

#[test]
fn a_command_that_fails_declines_its_job() {
    let server = Server::start();
    for id in ["good", "bad"] {
        server.run(&[
            "job",
            "add",
            id,
            "x",
            "--at",
            "in 1h",
            "--id",
            id,
            "--attempts",
            "1",
        ]);
        server.run(&["job", "force", id]);
    }
    let good = server.run(&[
        "deliver",
        "good",
        "--count",
        "1",
        "--",
        "sh",
        "-c",
        "cat; echo $JOB_ID",
    ]);
    assert_eq!(good.code, 0, "{}", good.err);
    let bad = server.run(&["deliver", "bad", "--count", "1", "--", "false"]);
    assert!(bad.err.contains("it is declined"), "{}", bad.err);
    assert_eq!(server.run(&["job", "follow", "good"]).code, 0);
    let followed = server.run(&["job", "follow", "bad"]);
    assert_eq!(followed.code, 1);
    assert!(followed.out.contains("\tfailed\t"), "{}", followed.out);
    assert!(
        followed.out.contains("(attempt 1 of 1)"),
        "{}",
        followed.out
    );
}

#[test]
fn what_is_no_time_and_no_name_is_wrong_use() {
    let server = Server::start();
    for (arguments, why) in [
        (
            &["job", "add", "a/b", "x", "--at", "now"][..],
            "is no recipient",
        ),
        (&["job", "add", "a", "x", "--at", "soon"], "is no time"),
        (
            &["job", "add", "a", "x", "--at", "now", "--zone", "Mars"],
            "no time zone",
        ),
        (
            &["job", "add", "a", "x", "--at", "now", "--every", "1ms"],
            "is no recurrence",
        ),
        (
            &[
                "job", "add", "a", "x", "--at", "now", "--cron", "* *", "--zone", "UTC",
            ],
            "is no recurrence",
        ),
        (
            &["job", "add", "a", "x", "--at", "now", "--window", "1ms"],
            "window",
        ),
        (&["job", "list", "--state", "gone"], "pending, ready"),
        (&["job", "cancel", "a b"], "is no id"),
    ] {
        let ran = server.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(why), "{arguments:?}: {}", ran.err);
    }
}
