//! Rules left out on purpose, one by one: a simulator that does not notice is not worth its time.
