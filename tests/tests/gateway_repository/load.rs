//! Large files and many at once: the server's memory is bounded by neither.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::house::{Answer, BOB, House, LISTENER, head};

const MIB: usize = 1 << 20;
const START: &str = "--*****\r\nContent-Disposition: form-data; name=\"UploadJSON\"\r\n\r\n{}\r\n\
    --*****\r\nContent-Disposition: form-data; name=\"UploadFile\"; filename=\"f\"\r\n\r\n";
const END: &str = "\r\n--*****--\r\n";

/// A MiB of a file, such that none is like another.
fn mebibyte(n: usize) -> Vec<u8> {
    (0..MIB)
        .map(|at| u8::try_from((at * 31 + n) % 251).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_goes_through_in_bounded_memory() {
    const FILE_MIB: usize = 64;
    /// What an upload and a download may take beside the engine's own: generous, and far from the file.
    const GROWTH_MAX: u64 = 48 << 20;
    let small = "[limits]\nmemory_bytes_max = \"32 MiB\"\n[engine]\nring_bytes = \"4 MiB\"\n";
    let at_once = [("MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")];
    let house = House::launched(&format!("{small}{LISTENER}"), &["--demo"], &at_once);
    let token = house.login(BOB).await;
    let headers = format!("Authorization: OAuth {token}\r\n");
    let upload = async |name: &str, mib: usize| {
        let target = format!("/upload?project=p&source=s&Path=&DestFileName={name}");
        let mut stream = house.connect().await;
        let length = START.len() + mib * MIB + END.len();
        stream
            .write_all(head(&target, &headers, length).as_bytes())
            .await
            .unwrap();
        stream.write_all(START.as_bytes()).await.unwrap();
        for n in 0..mib {
            stream.write_all(&mebibyte(n)).await.unwrap();
        }
        stream.write_all(END.as_bytes()).await.unwrap();
        let answer = Answer::read(&mut stream).await;
        assert_eq!(answer.told(), (200, "UPLOAD: succeed\n".to_owned()));
    };
    // What a first upload allocates for good is not the file's.
    upload("warm", 8).await;
    let before = house.server.peak_resident_bytes();
    upload("large", FILE_MIB).await;
    let mut stream = house.connect().await;
    let request = format!(
        "GET /download?project=p&source=s&filepath=/&filename=large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.windows(4).any(|window| window == b"\r\n\r\n") {
        read.push(stream.read_u8().await.unwrap());
    }
    let mut piece = vec![0; MIB];
    for n in 0..FILE_MIB {
        stream.read_exact(&mut piece).await.unwrap();
        assert!(piece == mebibyte(n), "MiB {n}");
    }
    assert_eq!(stream.read(&mut piece).await.unwrap(), 0);
    let growth = house.server.peak_resident_bytes().saturating_sub(before);
    assert!(
        growth < GROWTH_MAX,
        "{} MiB for a file of {FILE_MIB} MiB",
        growth >> 20
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_one_file_at_once_each_end_whole() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let query = "project=p&source=s&Path=&DestFileName=n";
    let files: Vec<Vec<u8>> = (0..6).map(|n| [n, 1 + n].repeat(MIB)).collect();
    let uploads = files.iter().enumerate().map(|(n, file)| {
        let json = format!("{{\"n\":{n},\"Project\":\"q{n}\"}}");
        let (house, token) = (&house, &token);
        async move { house.upload(token, query, file, &json).await.told() }
    });
    for told in futures_util::future::join_all(uploads).await {
        assert_eq!(told, (200, "UPLOAD: succeed\n".to_owned()));
    }
    let found = house.get("/query_metadata?filename=n", &token).await.json();
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    let n = usize::try_from(found[0]["n"].as_u64().unwrap()).unwrap();
    let read = house
        .get("/download?project=p&source=s&filepath=/&filename=n", &token)
        .await;
    assert!(
        read.body == files[n],
        "the document is of another upload than the file"
    );
    // The index has what this document says, and nothing of the others.
    for other in 0..6 {
        let found = house
            .get(&format!("/query_metadata?project=q{other}"), &token)
            .await
            .json();
        assert_eq!(
            found.as_array().unwrap().len(),
            usize::from(other == n),
            "q{other}"
        );
    }
}
