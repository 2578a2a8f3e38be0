//! Folders as lists and as zip files, and the log.

use std::collections::BTreeMap;
use std::io::Read;

use crate::house::{BOB, House};

/// The files of a zip file, read by its directory at the end, as most programs do.
fn unzipped(zip: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let number = |at: usize, bytes: usize| {
        let bytes = &zip[at..at + bytes];
        bytes
            .iter()
            .rev()
            .fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let end = zip.len() - 22;
    assert_eq!(&zip[end..end + 4], b"PK\x05\x06");
    let (count, mut at) = (number(end + 10, 2), number(end + 16, 4));
    let mut files = BTreeMap::new();
    for _ in 0..count {
        assert_eq!(&zip[at..at + 4], b"PK\x01\x02");
        let (packed, size) = (number(at + 20, 4), number(at + 24, 4));
        let (name, extra) = (number(at + 28, 2), number(at + 30, 2));
        let start = number(at + 42, 4);
        let text = String::from_utf8(zip[at + 46..at + 46 + name].to_vec()).unwrap();
        let data = start + 30 + number(start + 26, 2) + number(start + 28, 2);
        let mut file = Vec::new();
        let mut inflate = flate2::read::DeflateDecoder::new(&zip[data..data + packed]);
        inflate.read_to_end(&mut file).unwrap();
        let mut checksum = flate2::Crc::new();
        checksum.update(&file);
        assert_eq!(
            (file.len(), checksum.sum() as usize),
            (size, number(at + 16, 4))
        );
        files.insert(text, file);
        at += 46 + name + extra;
    }
    files
}

#[tokio::test]
async fn item_20_folders_are_listed_and_zipped() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let large: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 253) as u8).collect();
    for (query, file) in [
        (
            "project=demo&source=user&Path=mypath&DestFileName=main.c",
            b"main".as_slice(),
        ),
        (
            "project=demo&source=user&Path=mypath/sub&DestFileName=large",
            &large,
        ),
        ("project=demo&source=user&Path=&DestFileName=top", b""),
        ("project=demo&source=a%2Fb&Path=&DestFileName=100%25", b"%"),
        ("project=demo2&source=user&Path=mypath&DestFileName=z", b"z"),
    ] {
        house.uploaded(&token, query, file, "{}").await;
    }
    let all = "demo/a/b/100%\ndemo/user/mypath/main.c\ndemo/user/mypath/sub/large\ndemo/user/top\n";
    for (query, told) in [
        ("", format!("{all}demo2/user/mypath/z\n").as_str()),
        ("project=demo", all),
        (
            "project=demo&source=user&filepath=mypath",
            "demo/user/mypath/main.c\ndemo/user/mypath/sub/large\n",
        ),
        (
            "project=\"demo\"&source=\"user\"&filepath=\"mypath/sub/\"",
            "demo/user/mypath/sub/large\n",
        ),
    ] {
        let answer = house.get(&format!("/downloadlist?{query}"), &token).await;
        assert_eq!(answer.told(), (200, told.to_owned()), "{query}");
    }
    let zip = house.get("/downloadzip?project=demo", &token).await;
    assert_eq!(zip.header("content-type"), Some("application/zip"));
    let files = unzipped(&zip.body);
    let names: Vec<_> = files.keys().map(|name| format!("{name}\n")).collect();
    assert_eq!(names.concat(), all);
    assert!(files["demo/user/mypath/sub/large"] == large);
    assert_eq!(files["demo/user/top"], b"");
    let part = house
        .get(
            "/downloadzip?project=demo&source=user&filepath=mypath/sub",
            &token,
        )
        .await;
    assert_eq!(unzipped(&part.body).len(), 1);
    for route in ["downloadlist", "downloadzip"] {
        for (query, status) in [
            ("project=..", 400),
            ("project=demo&source=..", 400),
            ("project=demo&source=user&filepath=../../demo2", 400),
            ("project=%2e%2e", 400),
            ("project=none", 404),
            ("project=demo&source=user&filepath=my", 404),
        ] {
            let answer = house.get(&format!("/{route}?{query}"), &token).await;
            assert_eq!(answer.status, status, "{route} {query}");
        }
    }
    assert_eq!(house.get("/downloadzip", &token).await.status, 400);
}

#[tokio::test]
async fn logs_are_kept_and_listed_in_the_order_that_is_asked_for() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let empty = house.get("/get_log_list", &token).await;
    assert_eq!(empty.told(), (430, "Empty list of logs".to_owned()));
    for (user, code) in [("b", 400), ("a", 200)] {
        let target = format!("/new_log?user={user}&code={code}&message=m{code}&ip=1.2.3.4");
        assert_eq!(
            house.post(&target, &token).await.told(),
            (200, "registered log\n".to_owned())
        );
    }
    house.post("/new_log?message=last", &token).await;
    let messages = async |query: &str| {
        let list = house
            .get(&format!("/get_log_list{query}"), &token)
            .await
            .json();
        let list = list.as_array().unwrap().iter();
        list.map(|hit| hit["_source"]["message"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(messages("").await, ["last", "m200", "m400"]);
    assert_eq!(messages("?sorttype=1").await, ["last"]);
    assert_eq!(messages("?sorttype=3").await, ["last", "m200", "m400"]);
    assert_eq!(messages("?sorttype=2").await, ["last", "m200", "m400"]);
    assert_eq!(messages("?sorttype=5").await, ["last", "m200", "m400"]);
    let list = house.get("/get_log_list", &token).await.json();
    assert_eq!(list[0]["_source"]["ip"], "127.0.0.1");
    assert_eq!(list[1]["_source"]["ip"], "1.2.3.4");
    assert_eq!(house.post("/new_log?message=x", "").await.status, 403);
}
