package link

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Ratio is a share of all trace IDs, by the rule of OpenTelemetry's TraceIdRatioBased sampler: both sides of the link,
// and any collector behind them, choose the same traces. The zero value holds none.
type Ratio struct{ bound uint64 }

// NewRatio gives the rule for a share from 0 to 1.
func NewRatio(share float64) Ratio { return Ratio{uint64(share * (1 << 63))} }

// ParseRatio reads a share: a number from 0 to 1, or a percentage such as 5%.
func ParseRatio(s string) (Ratio, error) {
	number, percent := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(number, 64)
	if percent {
		f /= 100
	}
	if err != nil || !(f >= 0 && f <= 1) {
		return Ratio{}, fmt.Errorf("'%s' is not a ratio; want a number from 0 to 1, or a percentage such as 5%%", s)
	}
	return NewRatio(f), nil
}

// Holds says whether a trace is within the share.
func (r Ratio) Holds(id TraceID) bool {
	return binary.BigEndian.Uint64(id[8:])>>1 < r.bound
}
