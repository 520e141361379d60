"""Golden vectors for the plain Java part of the Android project (android/core), made by the Python edge."""
