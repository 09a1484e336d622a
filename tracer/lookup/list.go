package lookup

// links is a place in a list; a lookup has one for each list it may be in.
type links struct {
	prev, next *links
	e          *entry
	in         *list
}

// list is a doubly linked list of lookups that allocates nothing. head is its first.
type list struct {
	first, last *links
	head        *entry
	n           int
}

func (s *list) push(e *links) {
	if e.in != nil {
		e.in.remove(e)
	}
	e.in, e.prev, e.next = s, s.last, nil
	if s.last != nil {
		s.last.next = e
	} else {
		s.first, s.head = e, e.e
	}
	s.last = e
	s.n++
}

func (s *list) remove(e *links) {
	if e.in != s {
		return
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		s.last = e.prev
	}
	s.head = nil
	if s.first != nil {
		s.head = s.first.e
	}
	e.in, e.prev, e.next = nil, nil, nil
	s.n--
}
