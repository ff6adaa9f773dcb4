//! A few names in sorted order, in as little memory as possible.

use std::sync::Arc;

/// A few names in sorted order.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct NameSet(Box<[Arc<str>]>);

impl NameSet {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Arc<str>> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Arc<str>> {
        self.0.iter_mut()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|own| (**own).cmp(name))
    }

    /// Adds a name. Returns true if it is new.
    pub(super) fn insert(&mut self, name: Arc<str>) -> bool {
        let Err(index) = self.find(&name) else { return false };
        let (before, after) = self.0.split_at(index);
        self.0 = before.iter().chain([&name]).chain(after).cloned().collect();
        true
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Arc<str>> {
        let index = self.find(name).ok()?;
        let mut names = std::mem::take(&mut self.0).into_vec();
        let name = names.remove(index);
        self.0 = names.into();
        Some(name)
    }
}

impl FromIterator<Arc<str>> for NameSet {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(names: I) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }
}
