//! Records of jobs: whatever is taken for one is written the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::deliveries::Job;

fuzz_target!(|input: &[u8]| {
    for value in [input.to_vec(), [b"\xffjob\0", input].concat()] {
        let value = Bytes::from(value);
        if let Ok(job) = Job::decode(&value) {
            assert_eq!(job.encode(), value);
        }
    }
});
