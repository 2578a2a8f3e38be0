//! Where a file is, and which values of parameters name a place.

use std::fmt;

/// The most bytes of a project, a source or a file's name.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// The most bytes of a path.
pub(crate) const PATH_BYTES_MAX: usize = 1024;

/// Where a file is, by the parameters of the request that uploaded it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The project.
    pub(crate) project: String,
    /// The source within the project.
    pub(crate) source: String,
    /// The folder within the source: parts with `/` between them, or nothing.
    pub(crate) path: String,
    /// The file's name.
    pub(crate) name: String,
}

/// What is wrong with the value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Missing(&'static str),
    Invalid(&'static str),
    Empty(&'static str),
    TooLong(&'static str, usize),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "missing {name}"),
            Self::Invalid(name) => write!(f, "Invalid {name}"),
            Self::Empty(name) => write!(f, "Empty {name}"),
            Self::TooLong(name, max) => write!(f, "{name} has over {max} bytes"),
        }
    }
}

/// The names of the parameters that say where a file is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labels {
    pub(crate) path: &'static str,
    pub(crate) name: &'static str,
}

/// Of uploads and deletions.
pub(crate) const WRITTEN: Labels = Labels {
    path: "Path",
    name: "DestFileName",
};
/// Of downloads.
pub(crate) const READ: Labels = Labels {
    path: "filepath",
    name: "filename",
};

/// The values of the parameters, as they were sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    pub(crate) project: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) name: Option<String>,
}

impl Values {
    /// The place that they name.
    ///
    /// # Errors
    /// The first flaw: what is missing before what is invalid before what is empty, each in the order of the parameters.
    pub(crate) fn place(self, labels: Labels) -> Result<Place, Flaw> {
        let project = self.project.ok_or(Flaw::Missing("project"))?;
        let source = self.source.ok_or(Flaw::Missing("source"))?;
        let path = self.path.ok_or(Flaw::Missing(labels.path))?;
        let name = self.name.ok_or(Flaw::Missing(labels.name))?;
        check_text("project", &project)?;
        check_text("source", &source)?;
        check_text(labels.path, &path)?;
        check_text(labels.name, &name)?;
        if name.contains('/') || name == "." {
            return Err(Flaw::Invalid(labels.name));
        }
        let place = Place {
            project: stripped(&project).to_owned(),
            source: stripped(&source).to_owned(),
            path: stripped(&path).to_owned(),
            name: stripped(&name).to_owned(),
        };
        check_length("project", &place.project, NAME_BYTES_MAX)?;
        check_length("source", &place.source, NAME_BYTES_MAX)?;
        check_length(labels.name, &place.name, NAME_BYTES_MAX)?;
        if place.path.len() > PATH_BYTES_MAX {
            return Err(Flaw::TooLong(labels.path, PATH_BYTES_MAX));
        }
        Ok(place)
    }
}

/// A folder: a project, a source of it, a path within that, or everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Folder {
    pub(crate) project: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) path: String,
}

impl Folder {
    /// The folder of a listing. What is empty is left out, and with it what is behind it.
    ///
    /// # Errors
    /// The first flaw.
    pub(crate) fn of(values: Values) -> Result<Self, Flaw> {
        let Values {
            project,
            source,
            path,
            ..
        } = values;
        let cleaned = |name, value: Option<String>, max| {
            let value = value.unwrap_or_default();
            check_text(name, &value)?;
            let value = stripped(&value).to_owned();
            match value.len() > max {
                true => Err(Flaw::TooLong(name, max)),
                false => Ok((!value.is_empty()).then_some(value)),
            }
        };
        let project = cleaned("project", project, NAME_BYTES_MAX)?;
        let source = cleaned("source", source, NAME_BYTES_MAX)?;
        let path = cleaned("filepath", path, PATH_BYTES_MAX)?;
        let source = project.is_some().then_some(source).flatten();
        let path = source.is_some().then_some(path).flatten();
        Ok(Self {
            project,
            source,
            path: path.unwrap_or_default(),
        })
    }
}

/// That a value leads nowhere else, and is no pattern.
fn check_text(name: &'static str, value: &str) -> Result<(), Flaw> {
    let is_bad = ["..", "*", "\"", "./"]
        .iter()
        .any(|bad| value.contains(bad));
    match is_bad {
        true => Err(Flaw::Invalid(name)),
        false => Ok(()),
    }
}

fn check_length(name: &'static str, value: &str, max: usize) -> Result<(), Flaw> {
    match value.len() {
        0 => Err(Flaw::Empty(name)),
        bytes if bytes > max => Err(Flaw::TooLong(name, max)),
        _ => Ok(()),
    }
}

/// Without slashes at either end.
fn stripped(value: &str) -> &str {
    value.trim_matches('/')
}

/// Without one quote at the start and one at the end: shell scripts send them.
pub(crate) fn unquoted(value: &str) -> &str {
    let value = value.strip_prefix('"').unwrap_or(value);
    value.strip_suffix('"').unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(project: &str, source: &str, path: &str, name: &str) -> Values {
        let some = |text: &str| (text != "-").then(|| text.to_owned());
        Values {
            project: some(project),
            source: some(source),
            path: some(path),
            name: some(name),
        }
    }

    #[test]
    fn the_first_flaw_is_told_in_the_order_of_the_original() {
        let long = "x".repeat(256);
        for (project, source, path, name, told) in [
            ("-", "-", "-", "-", "missing project"),
            ("..", "-", "-", "-", "missing source"),
            ("", "s", "-", "n", "missing Path"),
            ("p", "s", "", "-", "missing DestFileName"),
            ("a*b", "..", "", "n", "Invalid project"),
            ("", "a\"", "", "n", "Invalid source"),
            ("p", "s", "../x", "n", "Invalid Path"),
            ("p", "s", "a/./b", "n", "Invalid Path"),
            ("p", "s", "", "a/b", "Invalid DestFileName"),
            ("p", "s", "", ".", "Invalid DestFileName"),
            ("//", "s", "", "n", "Empty project"),
            ("p", "/", "", "n", "Empty source"),
            ("p", "s", "", "", "Empty DestFileName"),
            (&long, "s", "", "n", "project has over 255 bytes"),
        ] {
            let flaw = values(project, source, path, name).place(WRITTEN);
            assert_eq!(flaw.unwrap_err().to_string(), told);
        }
    }

    #[test]
    fn slashes_at_the_ends_are_left_out() {
        let place = values("/p/", "s//", "/a/b/", "n").place(READ).unwrap();
        assert_eq!((&*place.project, &*place.source), ("p", "s"));
        assert_eq!((&*place.path, &*place.name), ("a/b", "n"));
        let place = values("p", "s", "/", "n").place(READ).unwrap();
        assert_eq!(place.path, "");
    }

    #[test]
    fn one_quote_at_each_end_is_left_out() {
        for (sent, meant) in [
            ("\"x\"", "x"),
            ("x", "x"),
            ("\"\"x", "\"x"),
            ("\"", ""),
            ("", ""),
        ] {
            assert_eq!(unquoted(sent), meant);
        }
    }

    #[test]
    fn a_folder_ends_where_a_parameter_is_empty() {
        let folder = |project, source, path| Folder::of(values(project, source, path, "-"));
        assert_eq!(folder("-", "s", "a").unwrap(), Folder::default());
        let of_source = folder("p", "s", "a/b/").unwrap();
        assert_eq!(of_source.path, "a/b");
        assert_eq!(folder("p", "", "a").unwrap().path, "");
        assert_eq!(folder("..", "-", "-"), Err(Flaw::Invalid("project")));
        assert_eq!(
            folder("p", "s", "..").unwrap_err(),
            Flaw::Invalid("filepath")
        );
    }
}
