//! The command whose start is timed: when its `main` began, into the file that it is given.

fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time after 1970");
    let file = std::env::args_os().nth(1).expect("a file");
    std::fs::write(file, now.as_nanos().to_string()).expect("the time can be written");
}
