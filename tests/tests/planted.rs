//! Deliberate bugs (`scripts/planted-bugs`) are in the build made for them, and in no other.

use storage_testkit::harness::binary;

#[test]
fn only_the_build_for_planted_bugs_knows_of_them() {
    for name in ["storage-server", "storage"] {
        let program = std::fs::read(binary(name)).unwrap();
        let knows = |text: &[u8]| program.windows(text.len()).any(|part| part == text);
        let planted = cfg!(feature = "planted-bugs");
        assert_eq!(knows(b"STORAGE_PLANTED_BUG"), planted, "{name}");
    }
}
