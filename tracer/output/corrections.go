package output

import "time"

// Corrections is a filter that also takes what corrects a row it has taken: who was told that a lookup is lost is told
// that it was answered after all. It remembers the last of those that may still be corrected, which the lost ones are.
type Corrections struct {
	Filter *Filter

	taken map[lookupKey]int // how many in order hold it
	order []lookupKey
}

// lookupKey tells the rows of one lookup from those of others.
type lookupKey struct {
	start          time.Time
	client, server string
	id             uint16
	name, qtype    string
}

// maxCorrections bounds what is remembered.
const maxCorrections = 16384

// Takes says whether a row is chosen.
func (c *Corrections) Takes(r *Row) bool {
	key := lookupKey{r.Time, r.Client.Address, r.Server, r.ID, r.Name, r.Type}
	if !c.Filter.Takes(r) && (r.Revision == 0 || c.taken[key] == 0) {
		return false
	}
	if r.Result != Lost {
		return true
	}
	if c.taken == nil {
		c.taken = make(map[lookupKey]int)
	}
	if len(c.order) == maxCorrections {
		oldest := c.order[0]
		if c.taken[oldest]--; c.taken[oldest] == 0 {
			delete(c.taken, oldest)
		}
		c.order = c.order[1:]
	}
	c.taken[key]++
	c.order = append(c.order, key)
	return true
}
