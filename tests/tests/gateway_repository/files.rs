//! Uploads, downloads, queries and deletions.

use serde_json::{Value, json};
use storage_protocol::{Batch, CommitOptions, Storage};
use tokio::io::AsyncWriteExt;

use crate::house::{Answer, BOB, Form, House, LISTENER, NATIVE, head};

const JSON: &str = r#"{"Author":"Alexey","Usecase":"HPC"}"#;
const PLACE: &str = "project=demo&source=user&Path=mypath&DestFileName=main.c";
const READ: &str = "project=demo&source=user&filepath=mypath&filename=main.c";

#[tokio::test]
async fn item_05_what_was_uploaded_is_downloaded() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let mebibyte = 1 << 20;
    for bytes in [
        0,
        1,
        10_000,
        mebibyte - 1,
        mebibyte,
        mebibyte + 1,
        3 * mebibyte + 7,
    ] {
        let file: Vec<u8> = (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
        house.uploaded(&token, PLACE, &file, JSON).await;
        let answer = house.get(&format!("/download?{READ}"), &token).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body == file, "{bytes} bytes");
        assert_eq!(
            answer.header("content-type"),
            Some("application/octet-stream")
        );
        assert_eq!(
            answer.header("content-disposition"),
            Some("attachment; filename=main.c")
        );
        assert_eq!(answer.header("content-length"), Some(&*bytes.to_string()));
    }
    let file: Vec<u8> = (0..3 * mebibyte + 7)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let read = async |headers: &str| {
        let headers = format!("Authorization: OAuth {token}\r\n{headers}");
        house
            .ask("GET", &format!("/download?{READ}"), &headers)
            .await
    };
    let part = read(&format!(
        "Range: bytes={}-{}\r\n",
        mebibyte - 2,
        mebibyte + 1
    ))
    .await;
    assert_eq!(part.status, 206);
    assert_eq!(part.body, file[mebibyte - 2..mebibyte + 2]);
    let range = format!("bytes {}-{}/{}", mebibyte - 2, mebibyte + 1, file.len());
    assert_eq!(part.header("content-range"), Some(&*range));
    assert_eq!(
        read("Range: bytes=-3\r\n").await.body,
        file[file.len() - 3..]
    );
    let none = read("Range: bytes=99999999-\r\n").await;
    assert_eq!((none.status, none.body.len()), (416, 0));
    let etag = read("").await.header("etag").unwrap().to_owned();
    assert_eq!(
        read(&format!("If-None-Match: {etag}\r\n")).await.status,
        304
    );
    assert_eq!(
        read(&format!("Range: bytes=0-0\r\nIf-Range: {etag}\r\n"))
            .await
            .status,
        206
    );
    assert_eq!(
        read("Range: bytes=0-0\r\nIf-Range: \"other\"\r\n")
            .await
            .status,
        200
    );
    house.uploaded(&token, PLACE, b"other", JSON).await;
    assert_eq!(
        read(&format!("If-None-Match: {etag}\r\n")).await.text(),
        "other"
    );
    let missing = house
        .get(
            "/download?project=demo&source=user&filepath=/&filename=none",
            &token,
        )
        .await;
    let told = "\n404: Bad Request, file not found.\nERROR File does not exist: demo/user/none\n";
    assert_eq!(missing.told(), (404, told.to_owned()));
    assert_eq!(house.metric("storage_repository_uploads_total").await, 8.0);
}

#[tokio::test]
async fn item_06_each_missing_or_bad_parameter_is_told_exactly() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let parameters = ["project=p", "source=s", "Path=a", "DestFileName=n"];
    for (place, name) in ["project", "source", "Path", "DestFileName"]
        .into_iter()
        .enumerate()
    {
        let mut rest = parameters.to_vec();
        rest.remove(place);
        let answer = house.upload(&token, &rest.join("&"), b"x", "{}").await;
        assert_eq!(
            answer.told(),
            (400, format!("400:Bad Request, missing {name}.\n"))
        );
    }
    for (query, told) in [
        (
            "project=p&source=s&Path=../x&DestFileName=n",
            "Invalid Path",
        ),
        (
            "project=..&source=s&Path=&DestFileName=n",
            "Invalid project",
        ),
        ("project=p&source=a*&Path=&DestFileName=n", "Invalid source"),
        (
            "project=p&source=s&Path=&DestFileName=a/b",
            "Invalid DestFileName",
        ),
        (
            "project=p&source=s&Path=&DestFileName=%2e%2e",
            "Invalid DestFileName",
        ),
        (
            "project=p&source=s&Path=a%2F..%2F..%2Fb&DestFileName=n",
            "Invalid Path",
        ),
        ("project=p&source=s&Path=\"&DestFileName=n", "Invalid Path"),
        ("project=//&source=s&Path=&DestFileName=n", "Empty project"),
        (
            "project=p&source=s&Path=&DestFileName=",
            "Empty DestFileName",
        ),
    ] {
        let answer = house.upload(&token, query, b"x", "{}").await;
        assert_eq!(
            answer.told(),
            (400, format!("400:Bad Request, {told}.\n")),
            "{query}"
        );
    }
    for json in ["", "no json", "[]", "null", "{\"a\":}"] {
        let answer = house.upload(&token, PLACE, b"x", json).await;
        assert_eq!(
            answer.told(),
            (400, "400:Bad Request, Invalid UploadJSON.\n".to_owned())
        );
    }
    let none = house.post(&format!("/upload?{PLACE}"), &token).await;
    assert_eq!(none.told(), (400, "No files were uploaded.".to_owned()));
    for (query, told) in [
        ("source=s&filepath=&filename=n", "missing project"),
        ("project=p&source=s&filename=n", "missing filepath"),
        (
            "project=p&source=s&filepath=..&filename=n",
            "Invalid filepath",
        ),
        ("project=p&source=&filepath=a&filename=n", "Empty source"),
    ] {
        let answer = house.get(&format!("/download?{query}"), &token).await;
        assert_eq!(
            answer.told(),
            (400, format!("400:Bad Request, {told}.\n")),
            "{query}"
        );
    }
    assert_eq!(house.get("/downloadlist", &token).await.text(), "");
}

#[tokio::test]
async fn item_07_without_a_token_nothing_is_uploaded() {
    let house = House::secured();
    let answer = house.upload("", PLACE, &[0; 300_000], "{}").await;
    let told = r#"{"message":"Missing authetication header"}"#;
    assert_eq!(answer.told(), (403, told.to_owned()));
    let answer = house.upload("garbage", PLACE, b"x", "{}").await;
    assert_eq!(answer.told(), (401, "Invalid token\n".to_owned()));
    for target in [
        "/query_metadata",
        "/downloadlist",
        "/downloadzip?project=p",
        "/get_log_list",
    ] {
        assert_eq!(house.get(target, "").await.status, 403, "{target}");
    }
    let token = house.login(BOB).await;
    assert_eq!(house.get("/query_metadata", &token).await.text(), "[]");
    // Where it is open by name, nobody asks.
    let open = House::open();
    open.uploaded("", PLACE, b"x", "{}").await;
    open.uploaded("stale", PLACE, b"y", "{}").await;
    assert_eq!(open.get(&format!("/download?{READ}"), "").await.text(), "y");
    assert_eq!(open.get("/verifytoken", "stale").await.status, 401);
}

#[tokio::test]
async fn parameters_may_be_fields_before_or_behind_a_file() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let fields = |form: Form, name: &str| {
        let form = form
            .field("project", "demo")
            .field("source", "user")
            .field("Path", "mypath");
        form.field("DestFileName", name)
    };
    let files = |form: Form| {
        form.file("UploadFile", b"content")
            .field("UploadJSON", JSON)
    };
    // The body counts before the query.
    let target = "/upload?project=other&DestFileName=other";
    for (form, name) in [
        (files(fields(Form::default(), "before")), "before"),
        (fields(files(Form::default()), "behind"), "behind"),
    ] {
        let answer = house.post_form(target, &token, &form).await;
        assert_eq!(answer.told(), (200, "UPLOAD: succeed\n".to_owned()));
        let read = format!("/download?project=demo&source=user&filepath=mypath&filename={name}");
        assert_eq!(house.get(&read, &token).await.text(), "content");
    }
    // What is known of a place must not turn out to be wrong, and a long file's must be known.
    let form = files(Form::default()).field("DestFileName", "elsewhere");
    let answer = house
        .post_form(&format!("/upload?{PLACE}"), &token, &form)
        .await;
    assert!(
        answer.status == 400 && answer.text().contains("another place"),
        "{answer:?}"
    );
    let form = fields(
        Form::default().file("UploadFile", &vec![0; 2 << 20]),
        "late",
    );
    let answer = house.post_form("/upload", &token, &form).await;
    assert!(
        answer.status == 400 && answer.text().contains("in the query"),
        "{answer:?}"
    );
    // The other form of the JSON wins.
    let form = files(Form::default()).field("RawJSON", r#"{"raw":true}"#);
    let answer = house
        .post_form(&format!("/upload?{PLACE}"), &token, &form)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let found = house
        .get("/query_metadata?filename=main.c", &token)
        .await
        .json();
    assert_eq!(
        (&found[0]["raw"], &found[0]["author"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        house.get("/downloadlist", &token).await.text(),
        "demo/user/mypath/before\ndemo/user/mypath/behind\ndemo/user/mypath/main.c\n"
    );
}

#[tokio::test]
async fn item_18_documents_are_found_by_any_of_their_names() {
    let house = House::secured();
    let token = house.login(BOB).await;
    for (project, source, path, name) in [
        ("demo", "user", "mypath", "main.c"),
        ("demo", "user", "mypath", "other.c"),
        ("demo", "PT", "", "main.c"),
        ("demo2", "user", "a/b", "main.c"),
    ] {
        let query = format!("project={project}&source={source}&Path={path}&DestFileName={name}");
        house.uploaded(&token, &query, b"x", JSON).await;
    }
    let count = async |query: &str| {
        let answer = house.get(&format!("/query_metadata?{query}"), &token).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json().as_array().unwrap().len()
    };
    for (query, found) in [
        ("", 4),
        ("pretty=true", 4),
        ("project=demo", 3),
        ("project=DEMO", 3),
        ("project=none", 0),
        ("source=user", 3),
        ("source=Pt&project=demo", 1),
        ("Path=mypath", 2),
        ("Path=", 1),
        ("filename=MAIN.c", 3),
        ("filename=main.c&Path=a/b", 1),
        ("filename=main.c&source=user", 2),
        ("project=demo&source=user&Path=mypath&filename=main.c", 1),
        ("project=demo&source=user&Path=mypath&filename=main", 0),
        // As the scripts have them: a raw quote at each end, and a parameter that there is not.
        (
            "project=\"demo\"&source=\"user\"&filepath=\"mypath\"&filename=\"main.c\"",
            1,
        ),
    ] {
        assert_eq!(count(query).await, found, "{query}");
    }
    let found = house
        .get(
            "/query_metadata?project=\"demo\"&filename=\"other.c\"",
            &token,
        )
        .await;
    let document = json!([{
        "project": "demo", "project_length": 4, "source": "user", "source_length": 4, "path": "mypath", "path_length": 6,
        "filename": "other.c", "filename_length": 7, "author": "Alexey", "author_length": 6, "usecase": "HPC",
        "usecase_length": 3,
    }]);
    assert_eq!(found.json(), document);
    let read = "/download?project=\"demo\"&source=\"user\"&filepath=\"mypath\"&filename=\"main.c\"";
    assert_eq!(house.get(read, &token).await.text(), "x");

    // Brackets and quotes of a query in JSON, as they are.
    let query = "/es_query_metadata?QueryBody={\"query\":{\"bool\":{\"must\":[{\"match\":{\"path\":\"mypath\"}}]}}}";
    let hits = house.get(query, &token).await;
    assert!(
        hits.text().starts_with("{\"hits\" :[ {\"project\":"),
        "{}",
        hits.text()
    );
    assert!(hits.text().ends_with("}]}\n"));
    assert_eq!(hits.json()["hits"].as_array().unwrap().len(), 2);
    let narrow = house.get(&format!("{query}&project=none"), &token).await;
    assert_eq!(narrow.text(), "{\"hits\" :[]}\n");
    let bad = house
        .get(
            "/es_query_metadata?QueryBody={\"query\":{\"fuzzy\":{}}}",
            &token,
        )
        .await;
    assert_eq!(bad.status, 400);
    assert_eq!(
        house
            .get("/es_query_metadata?QueryBody=x", &token)
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn a_document_that_says_other_names_is_found_by_both_and_is_one() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let find = async |query: &str| {
        let found = house
            .get(&format!("/query_metadata?{query}"), &token)
            .await
            .json();
        found.as_array().unwrap().len()
    };
    let json = r#"{"project":"phantom_tools_on_HPC","source":"PT"}"#;
    for _ in 0..2 {
        house.uploaded(&token, PLACE, b"x", json).await;
    }
    for query in [
        "",
        "project=demo",
        "project=phantom_tools_on_hpc",
        "source=PT",
        "source=user",
        "filename=main.c",
    ] {
        assert_eq!(find(query).await, 1, "{query}");
    }
    // With the next one, what it said before leads nowhere.
    house.uploaded(&token, PLACE, b"x", "{}").await;
    assert_eq!(find("project=phantom_tools_on_HPC").await, 0);
    assert_eq!(find("source=PT").await, 0);
    assert_eq!(find("project=demo&source=user").await, 1);
}

#[tokio::test]
async fn a_query_finds_at_most_a_hundred() {
    let house = House::secured();
    let token = house.login(BOB).await;
    for n in 0..101 {
        house.note(&token, "demo", "user", &format!("n{n}")).await;
    }
    for query in ["", "?project=demo", "?source=user"] {
        let found = house
            .get(&format!("/query_metadata{query}"), &token)
            .await
            .json();
        assert_eq!(found.as_array().unwrap().len(), 100);
    }
    let first = "/es_query_metadata?QueryBody={\"query\":{\"match_all\":{}},\"size\":3}";
    let found = house.get(first, &token).await.json();
    assert_eq!(found["hits"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn item_19_what_is_deleted_is_gone_with_its_document() {
    let house = House::secured();
    let token = house.login(BOB).await;
    for bytes in [10, 3 << 20] {
        house.uploaded(&token, PLACE, &vec![7; bytes], JSON).await;
        let deleted = house
            .post(&format!("/delete_metadata?{PLACE}"), &token)
            .await;
        assert_eq!(deleted.told(), (200, "deleted succeed\n".to_owned()));
        assert_eq!(
            house.get(&format!("/download?{READ}"), &token).await.status,
            404
        );
        assert_eq!(
            house
                .get("/query_metadata?project=demo", &token)
                .await
                .text(),
            "[]"
        );
        assert_eq!(
            house.get("/downloadlist?project=demo", &token).await.status,
            404
        );
        let again = house
            .post(&format!("/delete_metadata?{PLACE}"), &token)
            .await;
        let told = "Could not DELETE an not existing register.\n\n";
        assert_eq!(again.told(), (420, told.to_owned()));
    }
    for (query, told) in [
        ("source=s&Path=&DestFileName=n", "missing project"),
        ("project=p&source=s&DestFileName=n", "missing Path"),
        ("project=p&source=&Path=&DestFileName=n", "Empty source"),
        (
            "project=..&source=s&Path=&DestFileName=n",
            "Invalid project",
        ),
    ] {
        let answer = house
            .post(&format!("/delete_metadata?{query}"), &token)
            .await;
        assert_eq!(answer.told(), (400, format!("400:Bad Request, {told}.\n")));
    }
    assert_eq!(
        house
            .post(&format!("/delete_metadata?{PLACE}"), "")
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn item_21_a_get_may_say_multipart_and_have_no_body() {
    let house = House::secured();
    let token = house.login(BOB).await;
    house.uploaded(&token, PLACE, b"content", JSON).await;
    let headers = format!("Authorization: OAuth {token}\r\nContent-Type: multipart/form-data\r\n");
    for (target, told) in [
        (format!("/download?{READ}"), "content"),
        (
            "/downloadlist?project=demo".to_owned(),
            "demo/user/mypath/main.c\n",
        ),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        );
        assert_eq!(
            house.raw(request.as_bytes()).await.told(),
            (200, told.to_owned())
        );
    }
    let request = format!(
        "GET /query_metadata?project=demo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    );
    assert_eq!(
        house.raw(request.as_bytes()).await.json()[0]["author"],
        "Alexey"
    );
    let deleted = house
        .ask("POST", &format!("/delete_metadata?{PLACE}"), &headers)
        .await;
    assert_eq!(deleted.told(), (200, "deleted succeed\n".to_owned()));
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_and_leaves_nothing() {
    let config = format!(
        "[repository]\nobject_bytes_max = \"2 MiB\"\n{}",
        crate::house::LISTENER
    );
    let house = House::new(&config);
    let token = house.login(BOB).await;
    house.uploaded(&token, PLACE, &vec![1; 2 << 20], JSON).await;
    let answer = house
        .upload(&token, PLACE, &vec![2; (2 << 20) + 1], JSON)
        .await;
    assert!(
        answer.status == 413 && answer.text().contains("object_bytes_max"),
        "{answer:?}"
    );
    // The one before stands.
    assert_eq!(
        house.get(&format!("/download?{READ}"), &token).await.body,
        vec![1; 2 << 20]
    );
}

#[tokio::test]
async fn names_that_make_too_long_a_key_are_refused_before_the_file_comes() {
    let house = House::secured();
    let token = house.login(BOB).await;
    // Each of them is allowed, and counts three times.
    let (name, path) = ("%23".repeat(255), "%23".repeat(1024));
    let target = format!("/upload?project={name}&source={name}&Path={path}&DestFileName={name}");
    let headers = format!("Authorization: OAuth {token}\r\n");
    let mut stream = house.connect().await;
    stream
        .write_all(head(&target, &headers, 100 << 20).as_bytes())
        .await
        .unwrap();
    let start =
        "--*****\r\nContent-Disposition: form-data; name=\"UploadFile\"; filename=\"f\"\r\n\r\nx";
    stream.write_all(start.as_bytes()).await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert!(
        answer.status == 400 && answer.text().contains("key_bytes_max"),
        "{answer:?}"
    );
    // One that just fits comes back.
    let path = "%23".repeat(500);
    let place = format!("project={name}&source=s&Path={path}");
    house
        .uploaded(
            &token,
            &format!("{place}&DestFileName={name}"),
            &vec![7; 3 << 20],
            "{}",
        )
        .await;
    let read = format!("/download?project={name}&source=s&filepath={path}&filename={name}");
    assert_eq!(house.get(&read, &token).await.body, vec![7; 3 << 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_looks_at_so_many_rows_and_bytes_and_no_more() {
    let house = House::new(&format!("{LISTENER}{NATIVE}"));
    let token = house.login(BOB).await;
    house.note(&token, "p", "s", "n").await;
    let native = house.native().await;
    let commit = async |rows: &mut dyn Iterator<Item = (String, String)>| {
        let batch = rows.fold(Batch::new(), |batch, (key, value)| batch.put(key, value));
        let committed = native.commit(batch, CommitOptions::default()).await;
        committed.unwrap();
    };
    let any = "QueryBody={\"query\":{\"match\":{\"kind\":\"none\"}}}";
    // Long documents, that is to say: each is gone over for itself and for the condition.
    let json = format!("{{\"long\":\"{}\"}}", "x ".repeat(500_000));
    for n in 0..36 {
        let row = (format!("long/\0meta/s/n{n}"), json.clone());
        commit(&mut std::iter::once(row)).await;
    }
    let asked = |query: String, limit: &'static str| {
        let (house, token) = (&house, &token);
        async move {
            let answer = house.get(&query, token).await;
            assert_eq!(answer.status, 400, "{query}: {}", answer.text());
            assert!(answer.text().contains(limit), "{query}: {}", answer.text());
        }
    };
    asked(format!("/es_query_metadata?{any}"), "query_bytes_max").await;
    // Projects without number, and nothing in them: what no project's name is, is a row as well.
    for thousand in 0..51 {
        let mut rows = (0..1_000).map(|n| (format!("a{thousand}-{n}"), String::new()));
        commit(&mut rows).await;
    }
    asked(format!("/es_query_metadata?{any}"), "query_rows_max").await;
    asked("/query_metadata?source=none".to_owned(), "query_rows_max").await;
}
