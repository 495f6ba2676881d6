//! An ordered collection that its copies share: a B-tree whose nodes are copied only when they change while somebody else
//! still reads them.
//!
//! It is what a snapshot of the catalog is made of. Items lie side by side, up to [`FULL`] of them, so that one costs few
//! bytes beside itself and a search touches little memory. It decides nothing.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::slice;
use std::sync::Arc;

/// Items of a leaf, and children of an inner node, at most: a change that copies a leaf then copies at most four KiB.
const FULL: usize = 64;

/// A node with fewer is merged with a neighbour if both together leave room for more.
const FEW: usize = FULL / 4;
const MERGED: usize = FULL / 2;

/// Leaves grow by so many places: there are many, and doubling would leave a quarter of all memory empty.
const STEP: usize = 8;

/// What is in a tree, in the order of its keys.
pub(super) trait Item: Clone {
    type Key: Ord + Copy + Debug;

    fn key(&self) -> Self::Key;

    /// As `self.key().cmp(key)`, for items that know it sooner.
    fn order(&self, key: &Self::Key) -> Ordering {
        self.key().cmp(key)
    }
}

/// Cloning it copies a pointer.
#[derive(Debug, Clone)]
pub(super) struct Tree<T: Item> {
    root: Arc<Node<T>>,
    len: usize,
}

#[derive(Debug, Clone)]
enum Node<T: Item> {
    Leaf(Vec<T>),
    Inner(Vec<Child<T>>),
}

/// Items that lie side by side in a tree, as they were: who has it has not copied them, and keeps the tree from changing them.
#[derive(Debug)]
pub(super) struct Leaf<T: Item>(Arc<Node<T>>);

impl<T: Item> Leaf<T> {
    /// A leaf of no tree.
    pub(super) fn of(items: Vec<T>) -> Self {
        Self(Arc::new(Node::Leaf(items)))
    }

    pub(super) fn items(&self) -> &[T] {
        match &*self.0 {
            Node::Leaf(items) => items,
            Node::Inner(_) => &[],
        }
    }
}

/// A part of the tree. Its keys are at least `from`, unless it is the first of all, and less than the next one's.
#[derive(Debug, Clone)]
struct Child<T: Item> {
    from: T::Key,
    node: Arc<Node<T>>,
}

impl<T: Item> Default for Tree<T> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<T: Item> Tree<T> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, key: &T::Key) -> Option<&T> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Inner(children) => node = &children.get(child_of(children, key))?.node,
                Node::Leaf(items) => {
                    let at = items.binary_search_by(|item| item.order(key)).ok()?;
                    return items.get(at);
                }
            }
        }
    }

    /// An item to change, in all but its key.
    pub(super) fn get_mut(&mut self, key: &T::Key) -> Option<&mut T> {
        self.get(key)?;
        let mut node = &mut self.root;
        loop {
            match Arc::make_mut(node) {
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    node = &mut children.get_mut(at)?.node;
                }
                Node::Leaf(items) => {
                    let at = items.binary_search_by(|item| item.order(key)).ok()?;
                    return items.get_mut(at);
                }
            }
        }
    }

    /// Puts an item in, and takes out the one that had its key.
    pub(super) fn insert(&mut self, item: T) -> Option<T> {
        let first = item.key();
        let (old, right) = Arc::make_mut(&mut self.root).insert(item);
        if old.is_none() {
            self.len = self.len.saturating_add(1);
        }
        if let Some(right) = right {
            let left = Child { from: first.min(right.from), node: self.root.clone() };
            self.root = Arc::new(Node::Inner(vec![left, right]));
        }
        old
    }

    pub(super) fn remove(&mut self, key: &T::Key) -> Option<T> {
        self.get(key)?;
        let removed = Arc::make_mut(&mut self.root).remove(key)?;
        self.len = self.len.saturating_sub(1);
        while let Node::Inner(children) = &*self.root
            && let [only] = &children[..]
        {
            self.root = only.node.clone();
        }
        Some(removed)
    }

    /// All items in order.
    pub(super) fn iter(&self) -> Iter<'_, T> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        iter.descend(&self.root);
        iter
    }

    /// The parts that the items lie in, in order.
    pub(super) fn leaves(&self) -> Vec<Leaf<T>> {
        let mut leaves = Vec::new();
        gather(&self.root, &mut leaves);
        leaves
    }

    /// The items from this key on, in order.
    pub(super) fn iter_from(&self, key: &T::Key) -> Iter<'_, T> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        let mut node = &*self.root;
        while let Node::Inner(children) = node {
            let mut rest = children.get(child_of(children, key)..).unwrap_or_default().iter();
            let Some(child) = rest.next() else { return iter };
            iter.above.push(rest);
            node = &child.node;
        }
        if let Node::Leaf(items) = node {
            let at = items.partition_point(|item| item.order(key).is_lt());
            iter.leaf = items.get(at..).unwrap_or_default().iter();
        }
        iter
    }
}

impl<T: Item> Node<T> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(items) => items.len(),
            Self::Inner(children) => children.len(),
        }
    }

    /// Puts an item in. Returns the one that had its key, and the right half of this node if it became too full.
    fn insert(&mut self, item: T) -> (Option<T>, Option<Child<T>>) {
        let key = item.key();
        match self {
            Self::Leaf(items) => {
                let at = match items.binary_search_by(|other| other.order(&key)) {
                    Ok(at) => {
                        let old = items.get_mut(at).map(|old| std::mem::replace(old, item));
                        return (old, None);
                    }
                    Err(at) => at,
                };
                if items.len() == items.capacity() {
                    items.reserve_exact(STEP);
                }
                items.insert(at, item);
                let right = halve(items).map(|right| (right.first().map(T::key), right));
                let child = right.and_then(|(from, right)| {
                    Some(Child { from: from?, node: Arc::new(Self::Leaf(right)) })
                });
                (None, child)
            }
            Self::Inner(children) => {
                let at = child_of(children, &key);
                let Some(child) = children.get_mut(at) else { return (None, None) };
                let (old, split) = Arc::make_mut(&mut child.node).insert(item);
                let Some(split) = split else { return (old, None) };
                children.insert(at.saturating_add(1), split);
                let right = halve(children).map(|right| (right.first().map(|c| c.from), right));
                let child = right.and_then(|(from, right)| {
                    Some(Child { from: from?, node: Arc::new(Self::Inner(right)) })
                });
                (old, child)
            }
        }
    }

    fn remove(&mut self, key: &T::Key) -> Option<T> {
        match self {
            Self::Leaf(items) => {
                let at = items.binary_search_by(|item| item.order(key)).ok()?;
                let removed = items.remove(at);
                if items.capacity() > items.len().saturating_add(STEP).saturating_add(STEP) {
                    items.shrink_to(items.len().saturating_add(STEP));
                }
                Some(removed)
            }
            Self::Inner(children) => {
                let at = child_of(children, key);
                let child = children.get_mut(at)?;
                let removed = Arc::make_mut(&mut child.node).remove(key);
                if child.node.len() < FEW {
                    merge(children, at);
                }
                removed
            }
        }
    }

    fn append(&mut self, right: &Self) {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(right)) => left.extend_from_slice(right),
            (Self::Inner(left), Self::Inner(right)) => left.extend_from_slice(right),
            // All leaves are at the same depth.
            _ => {}
        }
    }
}

/// Adds the leaves below a node.
fn gather<T: Item>(node: &Arc<Node<T>>, leaves: &mut Vec<Leaf<T>>) {
    match &**node {
        Node::Leaf(_) => leaves.push(Leaf(node.clone())),
        Node::Inner(children) => children.iter().for_each(|child| gather(&child.node, leaves)),
    }
}

/// Which child has the keys around this one.
fn child_of<T: Item>(children: &[Child<T>], key: &T::Key) -> usize {
    // The first one has all keys below the second's, whatever it says that it begins at.
    let others = children.get(1..).unwrap_or_default();
    others.partition_point(|child| child.from <= *key)
}

/// Cuts off the right half if there are too many.
fn halve<E>(elements: &mut Vec<E>) -> Option<Vec<E>> {
    if elements.len() <= FULL {
        return None;
    }
    let right = elements.split_off(elements.len() / 2);
    elements.shrink_to_fit();
    Some(right)
}

/// Merges a child that has few elements with a neighbour, if both fit into one and leave room.
fn merge<T: Item>(children: &mut Vec<Child<T>>, at: usize) {
    let left = at.saturating_sub(1);
    let right = left.saturating_add(1);
    let len = |at: usize| children.get(at).map(|child| child.node.len());
    let (Some(before), Some(after)) = (len(left), len(right)) else { return };
    if before.saturating_add(after) > MERGED {
        return;
    }
    let taken = children.remove(right);
    if let Some(child) = children.get_mut(left) {
        Arc::make_mut(&mut child.node).append(&taken.node);
    }
}

/// Items of a tree in order.
#[derive(Debug, Clone)]
pub(super) struct Iter<'a, T: Item> {
    /// What is left of the inner nodes above the leaf.
    above: Vec<slice::Iter<'a, Child<T>>>,
    leaf: slice::Iter<'a, T>,
}

impl<'a, T: Item> Iter<'a, T> {
    /// Goes on at the first leaf of this part.
    fn descend(&mut self, mut node: &'a Node<T>) {
        loop {
            match node {
                Node::Leaf(items) => {
                    self.leaf = items.iter();
                    return;
                }
                Node::Inner(children) => {
                    let mut rest = children.iter();
                    let Some(child) = rest.next() else { return };
                    self.above.push(rest);
                    node = &child.node;
                }
            }
        }
    }
}

impl<'a, T: Item> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.leaf.next() {
                return Some(item);
            }
            let child = loop {
                match self.above.last_mut()?.next() {
                    Some(child) => break child,
                    None => self.above.pop(),
                };
            };
            self.descend(&child.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pair(u16, u8);

    impl Item for Pair {
        type Key = u16;

        fn key(&self) -> u16 {
            self.0
        }
    }

    impl Node<Pair> {
        /// Checks the order and the sizes, and returns the depth.
        fn check(&self, from: Option<u16>, to: Option<u16>) -> usize {
            assert!(self.len() <= FULL);
            match self {
                Self::Leaf(items) => {
                    assert!(items.is_sorted_by(|a, b| a.0 < b.0));
                    let is_inside =
                        |key| from.is_none_or(|from| from <= key) && to.is_none_or(|to| key < to);
                    assert!(items.iter().all(|item| is_inside(item.0)));
                    0
                }
                Self::Inner(children) => {
                    let mut depths = children.iter().enumerate().map(|(at, child)| {
                        let from = if at == 0 { from } else { Some(child.from) };
                        let to = children.get(at + 1).map_or(to, |next| Some(next.from));
                        child.node.check(from, to)
                    });
                    let depth = depths.next().unwrap();
                    assert!(depths.all(|other| other == depth), "all leaves are equally deep");
                    depth + 1
                }
            }
        }
    }

    fn is_the_same(tree: &Tree<Pair>, model: &BTreeMap<u16, u8>) {
        tree.root.check(None, None);
        assert_eq!(tree.len(), model.len());
        assert!(tree.iter().map(|pair| (&pair.0, &pair.1)).eq(model));
        assert!(tree.iter().eq(tree.leaves().iter().flat_map(Leaf::items)));
    }

    proptest! {
        #[test]
        fn a_tree_is_a_map_and_its_copies_stay_as_they_were(
            stretches in proptest::collection::vec((any::<bool>(), any::<u16>(), 1..600_u16, 1..9_u16), 1..24),
        ) {
            let (mut tree, mut model) = (Tree::<Pair>::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (turn, (puts, first, count, stride)) in stretches.into_iter().enumerate() {
                let turn = u8::try_from(turn).unwrap();
                copies.push((tree.clone(), model.clone()));
                for step in 0..count {
                    // Few keys, so that they meet again.
                    let key = (first % 2000).wrapping_add(step.wrapping_mul(stride)) % 4000;
                    if puts {
                        let old = tree.insert(Pair(key, turn)).map(|pair| pair.1);
                        prop_assert_eq!(old, model.insert(key, turn));
                    } else {
                        prop_assert_eq!(tree.remove(&key).map(|pair| pair.1), model.remove(&key));
                    }
                }
                if let Some(pair) = tree.get_mut(&first) {
                    pair.1 = 99;
                    model.insert(first, 99);
                }
                is_the_same(&tree, &model);
                prop_assert_eq!(tree.get(&first).map(|pair| pair.1), model.get(&first).copied());
                let rest: Vec<_> = tree.iter_from(&first).map(|pair| pair.0).collect();
                prop_assert_eq!(rest, model.range(first..).map(|(key, _)| *key).collect::<Vec<_>>());
            }
            for (tree, model) in &copies {
                is_the_same(tree, model);
            }
            for key in model.keys() {
                tree.remove(key);
            }
            is_the_same(&tree, &BTreeMap::new());
            prop_assert!(tree.is_empty() && matches!(&*tree.root, Node::Leaf(_)));
        }
    }
}
