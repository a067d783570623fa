//! openraft over sled: the group that agrees on the store.
