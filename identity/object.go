package identity

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// object is the least that client-go's reflector takes for an object: a key. The pods of a first list are held as such,
// and a [metav1.ObjectMeta] each would be most of their memory.
type object struct{ namespace, name string }

var _ metav1.Object = (*object)(nil)

func (o *object) GetNamespace() string                        { return o.namespace }
func (o *object) SetNamespace(s string)                       { o.namespace = s }
func (o *object) GetName() string                             { return o.name }
func (o *object) SetName(s string)                            { o.name = s }
func (*object) GetGenerateName() string                       { return "" }
func (*object) SetGenerateName(string)                        {}
func (*object) GetUID() types.UID                             { return "" }
func (*object) SetUID(types.UID)                              {}
func (*object) GetResourceVersion() string                    { return "" }
func (*object) SetResourceVersion(string)                     {}
func (*object) GetGeneration() int64                          { return 0 }
func (*object) SetGeneration(int64)                           {}
func (*object) GetSelfLink() string                           { return "" }
func (*object) SetSelfLink(string)                            {}
func (*object) GetCreationTimestamp() metav1.Time             { return metav1.Time{} }
func (*object) SetCreationTimestamp(metav1.Time)              {}
func (*object) GetDeletionTimestamp() *metav1.Time            { return nil }
func (*object) SetDeletionTimestamp(*metav1.Time)             {}
func (*object) GetDeletionGracePeriodSeconds() *int64         { return nil }
func (*object) SetDeletionGracePeriodSeconds(*int64)          {}
func (*object) GetLabels() map[string]string                  { return nil }
func (*object) SetLabels(map[string]string)                   {}
func (*object) GetAnnotations() map[string]string             { return nil }
func (*object) SetAnnotations(map[string]string)              {}
func (*object) GetFinalizers() []string                       { return nil }
func (*object) SetFinalizers([]string)                        {}
func (*object) GetOwnerReferences() []metav1.OwnerReference   { return nil }
func (*object) SetOwnerReferences([]metav1.OwnerReference)    {}
func (*object) GetManagedFields() []metav1.ManagedFieldsEntry { return nil }
func (*object) SetManagedFields([]metav1.ManagedFieldsEntry)  {}
